"""Pull from and push to the Hugging Face Hub: what its own client does, and retried, verified, with clear errors."""

from .contents import files_to_push
from .loading import load_pretrained, pull
from .pushing import push_files, push_folder

__all__ = ["files_to_push", "load_pretrained", "pull", "push_files", "push_folder"]
