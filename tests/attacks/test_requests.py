"""Requests that nobody of ours has sent: of other sites, by other names, too large, for files that are not served."""

from __future__ import annotations

import base64
import gc
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.attacks import files
from tests.attacks.canary import MARK
from tests.fake_page_host import FakePageHost
from tests.fake_webui import A1111, FakeWebui
from tests.page_server import free_port
from tests.test_webui import Site, job_request
from zoodip_core.base.errors import ImagesError, PathError
from zoodip_core.base.origins import is_foreign_name, is_foreign_page, is_loopback
from zoodip_core.data.images import MAX_FILE_BYTES
from zoodip_core.page import draft
from zoodip_core.page.page import launch
from zoodip_core.page.pictures_tab import Pictures
from zoodip_core.page.studio import Studio
from zoodip_webui import api
from zoodip_webui.host import Webui

# ---------------------------------------------------------------- who asks


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((name, True) for name in ("localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "::1")),
        *((name, False) for name in ("", "0.0.0.0", "192.168.0.2", "evil.example", "localhost.evil.example", "::")),
        *((name, False) for name in ("127.0.0.1.evil.example", "2130706433", "0x7f000001", "127.1", "a\0b")),
    ],
)
def test_the_names_of_this_computer(host: str, ours: bool) -> None:
    assert is_loopback(host) is ours


def test_whose_page_a_request_is_of() -> None:
    here = "127.0.0.1:7861"
    assert not is_foreign_page({"host": here})  # a program
    assert not is_foreign_page({"host": here, "origin": f"http://{here}"})
    assert not is_foreign_page({"host": "inner:80", "x-forwarded-host": "own.example", "origin": "https://own.example"})
    for origin in (
        "http://evil.example",
        "http://127.0.0.1:9999",
        "null",
        "",
        "file://",
        f"http://{here}.evil.example",
    ):
        assert is_foreign_page({"host": here, "origin": origin}), origin
    assert not is_foreign_name({"host": here})
    assert not is_foreign_name({"host": "[::1]:7861"})
    for name in ("evil.example:7861", "", "[::1", "192.168.0.2", "127.0.0.1@evil.example"):
        assert is_foreign_name({"host": name}), name


class Server:
    """The page as it is served, and requests to it as anybody could send them."""

    def __init__(self, root: Path, password: str = "") -> None:
        self.studio, self.port = Studio(FakePageHost(root)), free_port()
        self.page = launch(self.studio, host="127.0.0.1", port=self.port, password=password)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """The status and the text of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        connection.request(method, path, content, {"Host": f"127.0.0.1:{self.port}", **kind, **headers})
        answer = connection.getresponse()
        text = answer.read(200_000).decode("utf-8", "replace")
        connection.close()
        return answer.status, text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("page"))
    yield made
    made.page.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("locked"), "secret")
    yield made
    made.page.close()


ROUTES = [("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload")]
ROUTES += [("POST", "/gradio_api/run/predict"), ("GET", "/gradio_api/file=/etc/passwd"), ("OPTIONS", "/config")]


def test_the_page_answers_its_own_computer(server: Server) -> None:
    for name in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", f"[::1]:{server.port}"):
        assert server.ask("GET", "/config", Host=name, Origin=f"http://{name}")[0] == 200
    assert server.ask("GET", "/config")[0] == 200  # gradio takes a second for each


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_other_sites_do_not_reach_the_page(server: Server, method: str, path: str) -> None:
    for origin in ("http://evil.example", "null", f"http://localhost:{server.port + 1}"):
        status, text = server.ask(method, path, {}, Origin=origin)
        assert (status, "another site may not use this page" in text) == (403, True)
    rebound = f"evil.example:{server.port}"  # its name leads to 127.0.0.1 by now
    for headers in ({"Host": rebound}, {"Host": rebound, "Origin": f"http://{rebound}"}):
        assert server.ask(method, path, {}, **headers)[0] == 403
    assert server.ask(method, path, {}, Host=rebound, Origin="http://x", **{"X-Forwarded-Host": "x"})[0] == 403


def test_with_a_password_the_page_has_any_name(locked: Server) -> None:
    name = f"studio.example:{locked.port}"
    assert locked.ask("GET", "/config", Host=name)[0] == 401
    assert locked.ask("GET", "/config", Host=name, Origin=f"http://{name}")[0] == 401
    assert locked.ask("POST", "/login", {}, Host=name, Origin="http://evil.example")[0] == 403
    form = {"Host": name, "Content-Type": "application/x-www-form-urlencoded"}
    assert locked.ask("POST", "/login", b"username=zoodip&password=wrong", **form)[0] == 400
    assert locked.ask("POST", "/login", b"username=zoodip&password=secret", **form)[0] == 200


def test_the_page_offers_no_interface_for_scripts(server: Server) -> None:
    """Its events are its own; gradio would offer each to scripts and agents by name."""
    assert json.loads(server.ask("GET", "/gradio_api/info")[1])["named_endpoints"] == {}


# ---------------------------------------------------------------- what gradio serves, and takes


def test_gradio_serves_no_other_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(MARK)
    home = server.studio.host.home()
    (home / "secret.txt").write_text(MARK)
    for path in (str(tmp_path / "secret.txt"), str(home / "secret.txt"), str(home / ".." / "home" / "secret.txt")):
        for route in (
            "/gradio_api/file=",
            "/file=",
            "/gradio_api/proxy=",
            "/static/",
            "/assets/",
            "/gradio_api/stream/",
        ):
            status, text = server.ask("GET", route + path)
            assert status != 200 or MARK not in text, route
            assert MARK not in text


def event_of(server: Server, handler: str) -> int:
    """The number of the page's event that a handler listens to."""
    found = [number for number, fn in server.page.fns.items() if getattr(fn.fn, "__name__", "") == handler]
    assert found, handler
    return int(found[0])


def call(server: Server, handler: str, *given: Any) -> str:
    """Have an event happen as a browser has, with any values; returns all that is answered."""
    asked = {"data": list(given), "fn_index": event_of(server, handler), "session_hash": "attack", "event_data": None}
    status, text = server.ask("POST", "/gradio_api/queue/join", asked)
    if status != 200:
        return text
    return server.ask("GET", "/gradio_api/queue/data?session_hash=attack")[1]


def test_a_file_that_was_not_dropped_is_not_taken(server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "private.png")
    for given in (
        {"path": str(tmp_path / "private.png")},
        {"path": str(tmp_path / "private.png"), "url": "http://x/y"},
    ):
        text = call(server, "dropped", [{**given, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}])
        assert '"success":true' not in text.replace(" ", "")
    assert server.studio.draft.pictures() == []


def test_a_file_that_was_dropped_is_taken(server: Server, tmp_path: Path) -> None:
    """As a browser sends it; or the test above would prove nothing."""
    Image.new("RGB", (64, 64)).save(tmp_path / "own.png")
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="own.png"\r\n\r\n'
    body = part + (tmp_path / "own.png").read_bytes() + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    [path] = json.loads(server.ask("POST", "/gradio_api/upload", body, **kind)[1])
    try:
        call(server, "dropped", [{"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "own.png"}])
        assert [each.name for each in server.studio.draft.pictures()] == ["0001-own.png"]
        assert not Path(path).exists()
    finally:
        server.studio.draft.clear()


def test_what_was_dropped_is_not_kept_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, other = tmp_path / "uploads", tmp_path / "own"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    for folder in (uploads, other):
        folder.mkdir()
        Image.effect_noise((32, 32), 90).save(folder / "a.png")
    (uploads / "note.md").write_text("no picture")
    studio = Studio(FakePageHost(tmp_path / "host"))
    dropped = [uploads / "a.png", uploads / "note.md", other / "a.png"]
    Pictures(studio)._dropped([str(path) for path in dropped])
    assert [path.exists() for path in dropped] == [False, False, True]
    assert len(studio.draft.pictures()) == 2


@pytest.mark.parametrize("name", ["token", "steps", "model", "sample_prompt"])
def test_a_browser_may_send_any_value(server: Server, name: str) -> None:
    """What comes from a page is kept as what a form can hold."""
    inputs = {number: [getattr(each, "elem_id", "") for each in fn.inputs] for number, fn in server.page.fns.items()}
    [keep] = [server.page.fns[number].fn for number, ids in inputs.items() if ids == [f"zoodip_{name}"]]
    for value in ("x" * 1_000_000, "\ud800", {"a": [1]}, [["x"]] * 1000, 10**30, None, True):
        keep(value)
        kept = server.studio.draft.values()[name]
        assert isinstance(kept, str | int)
        assert len(str(kept).encode()) < 5000


# ---------------------------------------------------------------- how much is taken


def test_gradio_takes_no_larger_file_than_a_picture_may_be(server: Server) -> None:
    assert server.page.max_file_size == MAX_FILE_BYTES


def noise(folder: Path, count: int) -> list[tuple[Path, str]]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.effect_noise((32, 32), 90).save(folder / f"{i}.png")
    return [(folder / f"{i}.png", f"{i}.png") for i in range(count)]


def test_a_draft_takes_only_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = draft.Draft(tmp_path / "draft")
    given = noise(tmp_path / "given", 6)
    size = given[0][0].stat().st_size
    monkeypatch.setattr(draft, "MAX_TOTAL_BYTES", int(size * 4.5))
    assert kept.add(given[:3]) == []
    with pytest.raises(ImagesError, match=r"together, more than .* none of them was taken"):
        kept.add(given[3:])
    assert len(kept.pictures()) == 3
    monkeypatch.setattr(draft, "MAX_PICTURES", 3)
    with pytest.raises(ImagesError, match="too many"):
        kept.add(given[3:4])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(FakeWebui(A1111, tmp_path, monkeypatch))
    yield made
    made.end()


def test_a_request_is_read_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.MAX_REQUEST == 200_000_000
    monkeypatch.setattr(api, "MAX_REQUEST", 5_000_000)
    site = Site(FakeWebui(A1111, tmp_path, monkeypatch))
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while read < 2 * api.MAX_REQUEST:
            read += 1_000_000
            yield b" " * 1_000_000

    answer = site.client.post("/zoodip/v1/jobs", content=endless())
    assert answer.status_code == 413
    assert "give fewer or smaller pictures" in answer.json()["detail"]
    answer = site.client.post("/zoodip/v1/runs/rex/resume", content=b" " * 20_000)
    assert answer.status_code == 413


def test_a_request_is_not_read_before_it_is_known_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webui = FakeWebui(A1111, tmp_path, monkeypatch)
    webui.flags.api_auth = "me:secret"
    site = Site(webui)
    answer = site.client.post("/zoodip/v1/jobs", content=b"{" * 1000)
    assert answer.status_code == 401


@pytest.mark.parametrize("name", files.texts())
def test_a_request_that_is_no_object_of_settings(site: Site, name: str) -> None:
    for path in ("jobs", "runs/rex/resume"):
        if "deep" in name:
            gc.collect()  # what was left before: at the depth where a parser gives up, nothing else can be finalised
        answer = site.client.post(f"/zoodip/v1/{path}", content=files.texts()[name])
        assert answer.status_code in (413, 422), answer.text


def test_hostile_pictures_of_a_request(site: Site, tmp_path: Path) -> None:
    for path in files.pictures(tmp_path):
        if path.is_file() and path.stat().st_size < 2_000_000:
            data = base64.b64encode(path.read_bytes()).decode()
            answer = site.client.post("/zoodip/v1/jobs", json=job_request(pictures=[{"name": path.name, "data": data}]))
            assert answer.status_code in (200, 422), path.name
            site.end()


def test_the_interface_has_no_other_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site whose name leads to this computer sends its own name as the host's, and as the origin."""
    webui = FakeWebui(A1111, tmp_path, monkeypatch)
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    site = Site(webui)
    assert site.client.get("/zoodip/v1/jobs", headers=rebound).status_code == 403
    assert site.client.get("/zoodip/v1/jobs", headers={"Host": "evil.example"}).status_code == 403
    webui.flags.api_auth = "me:secret"
    assert Site(webui).client.get("/zoodip/v1/jobs", headers=rebound, auth=("me", "secret")).status_code == 200
    webui.flags.api_auth = None
    monkeypatch.setattr(FakePageHost, "for_its_user", lambda _host: False)  # as with --listen
    assert Site(webui).client.get("/zoodip/v1/jobs", headers={"Host": "192.168.0.2:7860"}).status_code == 200


@pytest.mark.parametrize(
    ("flags", "alone"),
    [
        ({}, True),
        ({"server_name": "127.0.0.1"}, True),
        ({"server_name": "0.0.0.0"}, False),
        ({"listen": True}, False),
        ({"share": True}, False),
        ({"ngrok": "token"}, False),
        ({"hide_ui_dir_config": True}, False),
    ],
)
def test_paths_are_taken_from_the_computer_s_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], alone: bool
) -> None:
    webui = FakeWebui(A1111, tmp_path, monkeypatch)
    vars(webui.flags).update(flags)
    assert Webui().for_its_user() is alone
    host = FakePageHost(tmp_path / "host")
    host.alone = alone
    studio = Studio(host)
    form = {"token": "<rex>", "initializer": "dog", "model": str(tmp_path / "m.safetensors")}
    if alone:
        assert studio.settings(form)["model"] == form["model"]
        return
    with pytest.raises(PathError, match="choose from the list"):
        studio.settings(form)
