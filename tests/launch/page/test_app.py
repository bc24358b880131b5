"""The page's server: what it serves, who sees what, and how much it holds."""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from launch.page.viewer import Viewer
from tacaf.search.album import Album
from tests.launch.page.page_server import ROUTES, picture, refused, served
from tests.processes import wait_until

pytest.importorskip("starlette", reason="pip install -e '.[app]'", exc_type=ImportError)
pytest.importorskip("uvicorn", reason="pip install -e '.[app]'", exc_type=ImportError)

from launch.page.app import MOST_WAITING, Page
from launch.page.guard import Guard
from launch.page.incoming import MOST_UPLOAD
from launch.page.memory import AGE_S, MOST, MOST_OF_SESSION, KeptQuery, Memory

pytestmark = pytest.mark.slow  # each image is checked in a process of its own


def test_a_query_its_matches_and_its_places(client):
    found = client.upload(picture()).json()
    assert (found["modality"], found["searched"], len(found["matches"])) == ("infrared", "visible", 12)
    first = found["comparison"]
    assert (first["rank"], sorted(first["pictures"])) == (0, ["heat", "mask", "other-mask", "query"])
    address = f"/queries/{found['query']}"
    second = client.post(f"{address}/match", {"rank": 3}).json()
    assert second["pictures"]["heat"] != first["pictures"]["heat"]
    place = client.post(f"{address}/place", {"rank": 3, "x": 1, "y": 1.0}).json()
    assert place["position"] == first["rows"] * first["columns"] - 1
    shown = place["pictures"]["query"].removeprefix("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(shown)), formats=["WEBP"]) as image:
        assert image.height == 384
    example = client.post("/search/example", {"modality": "visible", "among": "same", "example": 1}).json()
    assert example["searched"] == "visible"
    assert all(match["caption"][0] in "✓✗" for match in example["matches"])


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/redoc",
        "/config",
        "/info",
        "/gradio_api/info",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/queue/join",
        "/gradio_api/upload",
        "/file=/etc/passwd",
        "/static/../../../etc/passwd",
        "/metrics",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.html",
        "/page.css/..%2fguard.py",
        "//etc/passwd",
        "/gallery/",
        "/app.py",
        "/%c3%a4",
        "/%ff",
        "/%00",
        "/page.js%00",
        "/queries",
        "/.git/config",
    ],
)
def test_nothing_else_is_served(client, opened, path):
    for method in ("GET", "POST", "PUT", "DELETE"):
        refused(client.ask(method, path, b"{}" if method != "GET" else None), 404)
    assert not [name for name in opened if "passwd" in name]


@pytest.mark.parametrize("path", ROUTES)
def test_unknown_methods(client, path):
    methods = ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "X" * 300]
    for method in [*methods, *(["GET"] if path.startswith(("/search", "/queries")) else ["POST"])]:
        reply = client.ask(method, path)
        refused(reply, 405)
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


PASSWD = [
    "/etc/passwd",
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    ["/etc/passwd"],
    True,
    None,
    -1,
    12,
    1e400,
    10**400,
    0.5,
    "1",
    "file:///etc/passwd",
    float("nan"),
    "../../etc/passwd",
]


@pytest.mark.parametrize("value", PASSWD, ids=lambda value: str(value)[:30])
def test_a_path_in_any_field_opens_nothing(client, opened, value):
    own = client.upload(picture()).json()["query"]
    before = len(opened)
    example = {"modality": "visible", "among": "other", "example": 0}
    place = {"rank": 0, "x": 0.5, "y": 0.5}
    bodies = [("/search/example", example | {key: value}) for key in [*example, "path", "data"]]
    for address in (f"/queries/{own}/place", f"/queries/{own}/match"):
        bodies += [(address, place | {key: value}) for key in [*place, "path"]]
    for address, body in bodies:
        if value == 0.5 and address.endswith("place") and body.keys() == place.keys() and body["rank"] == 0:
            continue  # that is a place
        refused(client.post(address, body), 400)
        refused(client.post(address, value), 400)
    for field in ("modality", "among"):
        wanted = {"modality": "infrared", "among": "other"} | {field: "/etc/passwd"}
        refused(client.upload(picture(), **wanted), 400)
    assert not [name for name in opened[before:] if "passwd" in name]


def _other_ending(text):
    return text[:-1] + ("a" if text[-1] != "a" else "b")


def test_sessions_do_not_see_each_other(client):
    found = client.upload(picture()).json()["query"]
    other = type(client)(client.host, client.port).open()
    assert other.cookie != client.cookie
    for path, value in (("match", {"rank": 1}), ("place", {"rank": 0, "x": 0.5, "y": 0.5})):
        refused(other.post(f"/queries/{found}/{path}", value), 404)
        assert client.post(f"/queries/{found}/{path}", value).status == 200
    name, _, signed = client.cookie.partition("=")
    session, _, signature = signed.partition(".")
    for forged in (
        None,
        f"{name}=",
        f"{name}=x",
        f"{name}={session}.",
        f"{name}={session}.{_other_ending(signature)}",
        "a=b",
        f"{name}={_other_ending(session)}.{signature}",
        f"other={signed}",
        f"{name}=\u00ff.\u00ff",
    ):
        other.cookie = forged
        refused(other.post(f"/queries/{found}/match", {"rank": 0}), 403)
        refused(other.upload(picture()), 403)


def test_a_cookie_is_out_of_reach_for_scripts_and_other_sites(client):
    stranger = type(client)(client.host, client.port)
    cookie = stranger.ask("GET", "/").headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert client.ask("GET", "/").headers["Set-Cookie"] is None, "a session stays"


@pytest.mark.parametrize("name", ["x", "..", "%2e%2e", "a" * 5000, "%2fetc%2fpasswd", "%00", "__class__", "*"])
def test_other_names_of_queries(client, name):
    refused(client.post(f"/queries/{name}/match", {"rank": 0}), 404)


def test_the_queue_for_the_model_is_bounded(client, page, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(page.responses, "place", lambda *_: {"done": go.wait(900)})
    query = client.upload(picture()).json()["query"]
    place = {"rank": 0, "x": 0.5, "y": 0.5}
    with ThreadPoolExecutor(MOST_WAITING) as pool:
        waiting = [pool.submit(client.post, f"/queries/{query}/place", place) for _ in range(MOST_WAITING)]
        try:
            wait_until(lambda: page.waiting == MOST_WAITING)
            refused(client.upload(picture()), 503)
            assert client.ask("GET", "/gallery").status == 200
        finally:
            go.set()
        assert [one.result().json() for one in waiting] == [{"done": True}] * MOST_WAITING
    assert client.upload(picture()).status == 200


def test_an_unexpected_error_is_one_line_and_the_page_goes_on(client, page, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(page.responses, "place", fail)
    query = client.upload(picture()).json()["query"]
    for _ in range(30):
        answer = client.post(f"/queries/{query}/place", {"rank": 0, "x": 0.5, "y": 0.5})
        assert "secret" not in refused(answer, 500)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 10
    assert len(list(tmp_path.iterdir())) == len(lines), "the disk does not fill"
    assert client.upload(picture()).status == 200


def test_an_image_of_the_gallery_that_is_gone_is_named_without_its_folder(viewer, tmp_path):
    (tmp_path / "visible").mkdir()
    odd = "b\udcff\u202e.png"
    for number, name in enumerate(["a.png", odd, "c.png"]):
        (tmp_path / "visible" / name).write_bytes(picture(50 + 50 * number))
    own = Viewer(viewer.embedder, Album.open(viewer.embedder, str(tmp_path), "test", 9, 0))
    with served(Guard(Page(own).app(), "127.0.0.1", None, MOST_UPLOAD)) as client:
        found = client.open().upload(picture(100)).json()
        assert any(r"b\xff\u202e.png" in match["caption"] for match in found["matches"]), "escaped"
        names = [match["caption"].partition(" ")[0] for match in found["matches"]]
        (tmp_path / "visible" / "c.png").unlink()
        answer = client.post(f"/queries/{found['query']}/match", {"rank": names.index("visible/c.png")})
        text = refused(answer, 400)
        assert "visible/c.png" in text
        assert str(tmp_path) not in text
        for path in (tmp_path / "visible").iterdir():
            path.unlink()
        again = client.upload(picture(100)).json()
        assert [match["picture"] for match in again["matches"]] == [None] * 3
        assert str(tmp_path) not in again["comparison"]["problem"]
        gone = client.post("/search/example", {"modality": "visible", "among": "same", "example": 0})
        assert str(tmp_path) not in refused(gone, 400)


def test_memory_is_bounded_by_session_in_total_and_in_age():
    now = [0.0]
    memory = Memory(lambda: now[0])
    names = [memory.put("one", KeptQuery(None)) for _ in range(MOST_OF_SESSION + 1)]
    assert memory.find("one", names[0]) is None
    assert all(memory.find("one", name) for name in names[1:])
    for number in range(2 * MOST):
        memory.put(f"session {number}", KeptQuery(None))
    assert len(memory) == MOST
    assert memory.find("one", names[1]) is None, "the oldest make room"
    name = memory.put("two", KeptQuery(None))
    now[0] = AGE_S + 1
    assert memory.find("two", name) is None
    assert len(memory) == 0


def test_old_queries_go_when_nobody_asks(viewer, monkeypatch):
    monkeypatch.setattr("launch.page.app.SWEEP_S", 0.01)
    page = Page(viewer)
    now = [0.0]
    page.memory = Memory(lambda: now[0])
    with served(Guard(page.app(), "127.0.0.1", None, MOST_UPLOAD)) as client:
        assert client.open().upload(picture()).status == 200
        assert len(page.memory) == 1
        now[0] = AGE_S + 1
        wait_until(lambda: len(page.memory) == 0)
