"""A Hub on loopback that the real clients (huggingface_hub, transformers, datasets) talk to in tests.

It speaks the HTTP interface of the Hub as far as those clients use it for models, datasets and Spaces: accounts and
tokens, repositories, commits with large files, branches, tags, pull requests, listings and downloads. Xet is not
spoken, so clients must have `HF_HUB_DISABLE_XET=1`. No file is ignored by a `.gitignore`, and nothing is kept on disk.

    repositories.py  what a Hub holds: users, repositories, commits, files; no HTTP
    messages.py      requests and answers
    faults.py        what goes wrong on demand
    api.py           the routes under /api
    files.py         the routes of contents: resolve, LFS, storage
    cards.py         the metadata of a card, as the Hub checks and shows it
    server.py        the sockets, and `HubServer`, which tests hold
    client.py        points the clients of this process and of others to a server
"""

from .server import HubServer

__all__ = ["HubServer"]
