"""The app in a real browser, headless Chromium: `make test-app` installs what it needs and runs it."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from energy_transformer.data.image_processing import build_image_processor
from energy_transformer.hub.contents import space_files

pytestmark = pytest.mark.app
SECONDS = 120
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of the app, started as a user does, on a small model of 32×32 pixels."""
    from energy_transformer import EnergyTransformerConfig, EnergyTransformerForMaskedImageModeling

    folder = tmp_path_factory.mktemp("app")
    config = EnergyTransformerConfig(
        image_size=32, patch_size=4, hidden_size=32, num_attention_heads=2, head_dim=16, intermediate_size=64,
        num_steps=6, step_size=0.5, initialization="scaled",
    )  # fmt: skip
    EnergyTransformerForMaskedImageModeling(config).save_pretrained(folder / "model")
    build_image_processor((32, 32)).save_pretrained(folder / "model")
    with serving(
        [sys.executable, "-m", "energy_transformer", "app", str(folder / "model"), "--port", "PORT"], folder
    ) as url:
        yield url


@contextlib.contextmanager
def serving(command, folder):
    """The address of an app that a process serves as long as this is open; it starts in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    command = [str(port) if word == "PORT" else word for word in command]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment) as server,
    ):
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
            while True:
                try:
                    urllib.request.urlopen(url, timeout=5)
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                    time.sleep(0.5)
            yield url
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the app's tests need Chromium: install the package chromium of your distribution"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class User:
    """A window of its own, with cookies of its own."""

    def __init__(self, browser, address):
        self.page = browser.new_context(viewport={"width": 1280, "height": 1100}).new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.goto(address)
        self.page.wait_for_selector("#editor")

    def choose(self, photograph):
        self.page.locator("#photograph input").click()
        with self.page.expect_response(re.compile("/queue/data")):
            self.page.get_by_role("option", name=photograph).click()
        self.page.wait_for_timeout(3000)  # the editor draws its picture after the answer has come

    def paint(self):
        box = self.page.locator("#editor canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 60, y - 40)
        self.page.mouse.down()
        self.page.mouse.move(x, y, steps=6)
        self.page.mouse.move(x + 60, y + 20, steps=6)
        self.page.mouse.up()
        self.page.wait_for_timeout(1000)

    def fill_in(self):
        self.page.locator("#fill-in").click()

    def source(self, name, other_than=None):
        """The address of a picture of the app, once there is one and it is not that other one."""
        image = self.page.locator(f"#{name} img").first
        image.wait_for()
        end = time.monotonic() + SECONDS
        while (found := image.get_attribute("src")) == other_than:
            assert time.monotonic() < end, f"{name} did not change"
            self.page.wait_for_timeout(200)
        return found


def test_paint_fill_in_step_back_and_click(browser, address):
    user = User(browser, address)
    user.choose("coffee")
    user.paint()
    user.fill_in()
    last, energies = user.source("result"), user.source("energies")
    slider = user.page.locator("#step input[type=number]")
    assert slider.input_value() == "6"
    slider.fill("0")
    slider.press("Enter")
    first = user.source("result", other_than=last)
    assert user.source("energies", other_than=energies) and first != last
    user.page.locator("#result img").click(position={"x": 100, "y": 100})
    assert user.source("attention")
    user.page.get_by_text("The memories of the model").click()
    user.page.locator("#browse").click()
    assert user.source("memory-pictures")


def test_mistakes_are_messages(browser, address, tmp_path):
    user = User(browser, address)
    user.fill_in()
    user.page.get_by_text("there is no picture yet").wait_for()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    user.page.locator("input[type=file]").first.set_input_files(tmp_path / "broken.png")
    user.page.get_by_text(re.compile("broken.png")).wait_for()
    user.choose("chelsea")
    user.fill_in()
    user.page.get_by_text("nothing is hidden").wait_for()


def test_two_users_at_once_see_their_own_pictures(browser, address):
    users = [User(browser, address), User(browser, address)]
    for user, photograph in zip(users, ("coffee", "rocket"), strict=True):
        user.choose(photograph)
        user.paint()
    for user in users:
        user.fill_in()
    pictures = [user.page.request.get(user.source("result")).body() for user in users]
    assert pictures[0] != pictures[1]
    slider = users[0].page.locator("#step input[type=number]")
    slider.fill("1")
    slider.press("Enter")
    users[0].source("result", other_than=users[0].source("energies"))
    assert users[1].page.request.get(users[1].source("result")).body() == pictures[1]


def test_no_file_of_the_machine_is_served(address, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for path in ("/etc/passwd", str(tmp_path / "secret.txt"), __file__):
        for door in ("gradio_api/file=", "file=", "gradio_api/file/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/{door}{path}", timeout=30)
            assert refused.value.code in (403, 404)


def test_it_listens_on_this_machine_alone(address):
    port = int(address.rpartition(":")[2])
    outside = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for ip in outside - {"127.0.0.1"}:
        if not ip.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((ip, port), timeout=5):
                pass


def test_a_space_opens_on_its_own_files(browser, tmp_path):
    files = space_files(ROOT / "spaces")
    for name, path in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    with serving([sys.executable, "app.py"], tmp_path) as url:
        user = User(browser, url)
        user.choose("coffee")
        user.paint()
        user.fill_in()
        assert user.source("result")
