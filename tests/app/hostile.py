"""Hostile requests, by kind: each function sends those of one kind and returns what was said."""

import http.server
import io
import json
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from imagen_jax.app.limits import Limits
from tests.app.serving import Site

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(images=2, steps=20, characters=100, upload_bytes=2**20, pixels=10_000, waiting=60)
GENERATE = (
    "prompt",
    "model",
    "style",
    "negative_prompt",
    "steps",
    "guidance",
    "seed",
    "size",
    "num_images",
)
GOOD = {
    "prompt": "red heart",
    "model": "other",
    "style": "",
    "negative_prompt": "",
    "steps": 4,
    "guidance": 3,
    "seed": "7",
    "size": 4,
    "num_images": 1,
}
TYPES = [[], {}, ["a"], {"path": 1}, True, {"__type__": "update"}]
HUGE = [10**300, -(10**300), 2**64 + 1, 1e308, -1, 0.5, "1e9", "NaN", "٣٤x", "0x10"]


class Canary(http.server.BaseHTTPRequestHandler):
    """A server of this machine, which nobody may ask."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: Any):
        pass


class Visitor:
    """Sends requests and says what came back."""

    def __init__(self, site: Site):
        self.site = site
        self.api = f"{site.url}gradio_api/"
        self.http = httpx.Client(timeout=60)

    def ask(self, method: str, path: str, **more: Any) -> str:
        answer = self.http.request(method, f"{self.site.url}{path}", **more)
        assert answer.status_code < 500 or answer.status_code == 507, (path, answer.text)
        return f"{answer.status_code} {answer.text}"

    def call(self, name: str, data: list[Any]) -> str:
        """An endpoint's answer to values."""
        text = json.dumps({"data": data})
        answer = self.http.post(f"{self.api}call/{name}", content=text, headers=JSON)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        event = answer.json()["event_id"]
        return "200 " + self.http.get(f"{self.api}call/{name}/{event}").text

    def private(self, number: int, data: list[Any], **more: Any) -> str:
        """As `call`, of an event without a name."""
        body = {"data": data, "fn_index": number, "session_hash": "a"} | more
        answer = self.http.post(f"{self.api}run/predict", json=body)
        assert answer.status_code < 500 or answer.json()["error"], (number, data, answer.text)
        return f"{min(answer.status_code, 400)} {answer.text}"

    def generate(self, **changes: Any) -> str:
        return self.call("generate", [(GOOD | changes)[name] for name in GENERATE])

    def edit(self, image: Any) -> str:
        values = [image, "red heart", "other", "", 0.5, "", 4, 3, "7", 4, 1]
        return self.call("edit", values)

    def upload(self, content: bytes, name: str = "a.png") -> str:
        """The path of an uploaded file."""
        files = {"files": (name, io.BytesIO(content))}
        return self.http.post(f"{self.api}upload", files=files).json()[0]


JSON = {"Content-Type": "application/json"}


def file(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}} | more


def refused(said: str) -> bool:
    """Whether an answer is a refusal in words."""
    if said.startswith("4") or said.startswith("507"):
        return len(said) > 6
    *_, last = said.strip().split("event: ")
    return last.startswith("error") and '"error": "' in last


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def small() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(out, "PNG")
    return out.getvalue()


def wrong_types(visit: Visitor, _: str) -> list[str]:
    said = [visit.generate(**{name: value}) for name in GENERATE for value in TYPES]
    return said + [visit.edit(value) for value in ("a", 1, True, ["a"], {"path": 5}, {})]


def numbers(visit: Visitor, _: str) -> list[str]:
    names = ("steps", "guidance", "seed", "num_images", "size")
    wrong = [(name, value) for name in names for value in HUGE]
    fine = {("guidance", -1), ("guidance", 0.5), ("guidance", 0)}
    return [visit.generate(**{name: value}) for name, value in wrong if (name, value) not in fine]


def texts(visit: Visitor, _: str) -> list[str]:
    prompts = [
        "x" * 101,
        "x" * 200_000,
        "\ud800",
        "a\udfffb",
        "\x00",
        "a\x1b[2J",
        "",
        " \n ",
        "\x7f\x08",
    ]
    said = [visit.generate(prompt=prompt) for prompt in prompts]
    names = [
        "../../etc/passwd",
        "/",
        "~",
        "file:///etc/passwd",
        "icons-fast\x00",
        "user/name",
        "A,B",
    ]
    return said + [visit.generate(model=name) for name in names]


def paths(visit: Visitor, _: str) -> list[str]:
    folder = str(visit.site.studio.folder)
    wanted = [
        "/etc/passwd",
        "../../../etc/passwd",
        "etc/passwd",
        "file:///etc/passwd",
        "/proc/self/environ",
        "\\\\host\\share",
        "~/.ssh/id_rsa",
        "pyproject.toml",
        str(ROOT / "README.md"),
        folder,
        f"{folder}/../../etc/passwd",
        f"{folder}/no.png",
        "/dev/zero",
        "a\x00.png",
        "x" * 5000,
    ]
    said = [visit.edit(file(path)) for path in wanted]
    said += [visit.ask("GET", f"gradio_api/file={path}") for path in wanted if "\x00" not in path]
    link = visit.site.studio.folder / "link.png"
    link.symlink_to("/etc/passwd")
    said.append(visit.ask("GET", f"gradio_api/file={link}"))
    said.append(visit.edit(file(str(link))))
    link.unlink()
    return said


def addresses(visit: Visitor, canary: str) -> list[str]:
    port = canary.split(":")[2].split("/")[0]
    hosts = ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f000001", "127.1"]
    urls = [f"http://{host}:{port}/secret.png" for host in hosts]
    urls += [
        "http://169.254.169.254/latest/meta-data",
        "https://[fd00::1]/",
        "ftp://127.0.0.1/x",
        "data:image/png;base64,AAAA",
    ]
    good = visit.upload(small())
    said = [visit.edit(file(url)) for url in urls]
    said += [visit.edit(file(good, url=url)) for url in urls]
    said += [visit.ask("GET", f"gradio_api/file={url}") for url in urls[:4]]
    said += [visit.ask("GET", f"gradio_api/proxy={url}") for url in urls[:4]]
    return said


def images(visit: Visitor, _: str) -> list[str]:
    square = png(16, 16, zlib.compress(b"\0" * 16 * 49))
    text = b"zTXt" + b"imagen_jax\0\0" + zlib.compress(b"0" * 2**26)
    bomb = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    gif = io.BytesIO()
    Image.new("P", (200, 200)).save(gif, "GIF")
    wrong = {
        "bomb.png": png(60_000, 60_000, zlib.compress(b"\0" * 2**20)),
        "text.png": png(16, 16, b"", bomb),
        "cut.png": square[:-30],
        "empty.png": b"",
        "pickle.png": b"\x80\x04\x95\x0f\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "page.png": b"<html><script>alert(1)</script></html>",
        "draw.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "print.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "large.gif": gif.getvalue(),
        "zip.png": b"PK\x03\x04" + b"\0" * 100,
        "zero.png": png(0, 0),
        "long.png": png(2**31 - 1, 1),
    }
    said = [visit.edit(file(visit.upload(content, name))) for name, content in wrong.items()]
    config = visit.http.get(f"{visit.site.url}config").json()
    reads = [x["id"] for x in config["dependencies"] if "upload" in str(x["targets"])]
    assert len(reads) == 1
    for name in ("bomb.png", "text.png", "long.png"):
        said.append(visit.private(reads[0], [file(visit.upload(wrong[name], name))]))
    layer = file(visit.upload(wrong["bomb.png"]))
    drawing = {"background": file(visit.upload(small())), "layers": [layer], "composite": None}
    values = ["red heart", "other", "", "", 4, 3, "7", 4, 1]
    for broken in (
        drawing,
        drawing | {"layers": "x"},
        drawing | {"layers": [1]},
        {"layers": []},
        [],
    ):
        said.append(visit.call("inpaint", [broken, *values]))
    return said


def settings(visit: Visitor, _: str) -> list[str]:
    entry = {"sampler": "ddpm", "steps": 10**9}
    whole = {"prompt": "a", "seed": 1, "index": 0, "size": 4, "sampling": [entry]}
    wrong = [
        None,
        "",
        "[]",
        "{",
        "1",
        "[" * 10_000,
        "{}",
        json.dumps(whole),
        '{"sampling": 5}',
        '{"sampling": [5]}',
        json.dumps(whole | {"sampling": [{"spacing": list(range(5000))}]}),
        json.dumps(whole | {"sampling": [{}], "prompt": ["a"] * 1000}),
        json.dumps(whole | {"sampling": [{}], "batch_size": 2**20}),
        json.dumps(whole | {"sampling": [{"sampler": "__import__"}]}),
    ]
    return [visit.call("again", [text, "other"]) for text in wrong]


def bodies(visit: Visitor, _: str) -> list[str]:
    wrong = [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b"\xff\xfe",
        b'{"data": NaN}',
        b'{"data": [Infinity]}',
        b"[" * 50_000,
        b'{"a": ' * 5000,
        b'{"data": [], "data": []}',
        b'{"data": "x"}',
        b'{"data": [1]}',
        b"{}",
        b'{"data": [1e999]}',
        b'{"data": [' + b"9" * 5000 + b"]}",
        b" " * 2**19,
        b'{"data": ["\\ud800"]}',
    ]
    url = "gradio_api/call/generate"
    said = [visit.ask("POST", url, content=body, headers=JSON) for body in wrong]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
        said.append(visit.ask("POST", url, content=b"{}", headers={"Content-Type": kind}))
    return said


GRADIO_GETS = """dev/reload monitoring monitoring/summary runs openapi.json deep_link token user
    custom_component/1/client/component/index.js profiling/traces stream/a/b/1/playlist.m3u8"""
GRADIO_POSTS = """component_server process_recording vibe-edit stream/a run-history/connect login"""
OTHER_GETS = """svelte/../../etc/passwd login docs monitoring .env assets/../../../../etc/passwd
    static/%2e%2e/%2e%2e/routes.py"""


def endpoints(visit: Visitor, _: str) -> list[str]:
    api, names = "gradio_api/", ("", "nothing", "a/b", "..", "_made", "stop", "__init__")
    said = [visit.call(name, []) for name in names]
    for number in (-1, 10**9, 1.5, "x", None, True, [], {}):
        body = {"data": [], "fn_index": number, "session_hash": "a"}
        said.append(visit.ask("POST", api + "queue/join", json=body))
        said.append(visit.ask("POST", api + "run/predict", json=body))
    said += [visit.ask("GET", api + path) for path in GRADIO_GETS.split()]
    said += [visit.ask("POST", api + path, json={"data": []}) for path in GRADIO_POSTS.split()]
    said += [visit.ask("GET", path) for path in OTHER_GETS.split()]
    methods = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECTING")
    return said + [visit.ask(method, "") for method in methods]


def sites(visit: Visitor, _: str) -> list[str]:
    heads = [
        {"Host": host}
        for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "x")
    ]
    origins = (
        "http://evil.example",
        "null",
        "https://localhost.evil.example",
        "http://127.0.0.1:1",
        "",
    )
    heads += [{"Origin": origin} for origin in origins]
    body = {"data": [GOOD[name] for name in GENERATE]}
    said = [visit.ask("GET", "", headers=head) for head in heads]
    return said + [
        visit.ask("POST", "gradio_api/call/generate", json=body, headers=head) for head in heads
    ]


def uploads(visit: Visitor, _: str) -> list[str]:
    url, large = "gradio_api/upload", b"0" * (LIMITS.upload_bytes + 2**17)
    many = [("files", (f"{n}.png", b"0" * 2**12)) for n in range(400)]
    said = [
        visit.ask("POST", url, files={"files": ("a.png", large)}),
        visit.ask("POST", url, files=many),
    ]
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for parts in (
        [head, *[b"0" * 2**16] * 40],
        [head, b"0" * 100],
        [head * 2000],
    ):  # no length told
        said.append(visit.ask("POST", url, content=iter(parts), headers=form))
    for head in (
        {},
        JSON,
        {"Content-Type": "multipart/form-data"},
        form | {"Content-Length": "9" * 40},
    ):
        try:
            said.append(visit.ask("POST", url, content=b"--x\r\n", headers=head))
        except (
            httpx.RemoteProtocolError,
            httpx.LocalProtocolError,
            httpx.WriteError,
            httpx.ReadError,
        ):
            said.append("400 connection closed")  # the lengths do not agree
    return said


def sessions(visit: Visitor, _: str) -> list[str]:
    api, said = "gradio_api/", []
    for event in ("nothing", "../..", "x" * 3000):
        said.append(visit.ask("GET", f"{api}call/generate/{event}"))
    for body in ({}, {"session_hash": 1}, {"session_hash": "a", "fn_index": "x", "event_id": []}):
        said.append(visit.ask("POST", api + "cancel", json=body))
    said.append(
        visit.ask("POST", api + "queue/join", json={"data": list(GOOD.values()), "fn_index": 0})
    )
    said.append(visit.ask("GET", api + "queue/data"))
    said.append(visit.ask("GET", api + "queue/data?session_hash=nobody"))
    said.append(visit.ask("GET", api + "upload_progress"))
    return said


def private_events(visit: Visitor, _: str) -> list[str]:
    """What the page's own events are not meant to get."""
    said, wrong = [], [{"index": {}}, {"value": 1}, {}, 5, [], "x"]
    for event in visit.http.get(f"{visit.site.url}config").json()["dependencies"]:
        number, count = event["id"], len(event["inputs"])
        said.append(visit.private(number, [None] * (count + 1)))
        said.append(visit.private(number, [{"path": "/etc/passwd"}] * (count + 1)))
        if "select" in str(event["targets"]):
            said += [visit.private(number, [None], event_data=data) for data in [None, *wrong]]
        for data in wrong:  # answered, whatever it is: `ask` fails where the server does
            visit.private(number, [{}] * count, event_data=data)
    return said


def raw_bytes(visit: Visitor, _: str) -> list[str]:
    host, port = visit.site.url.removeprefix("http://").rstrip("/").split(":")
    said = []
    for sent in (
        b"\x16\x03\x01" * 20,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with socket.create_connection((host, int(port)), 20) as connection:
            connection.settimeout(20)
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(2**16).decode("latin-1")
            except ConnectionResetError:
                answer = ""
        said.append(answer.partition(" ")[2] or "400 connection closed")
    return said


def many_at_once(visit: Visitor, _: str) -> list[str]:
    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(lambda _: visit.generate(steps=10**6), range(40)))


KINDS = (
    wrong_types,
    numbers,
    texts,
    paths,
    addresses,
    images,
    settings,
    bodies,
    endpoints,
    sites,
    uploads,
    sessions,
    private_events,
    raw_bytes,
    many_at_once,
)
