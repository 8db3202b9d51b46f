"""The chat page in a headless Chromium: `make test-browser`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, find_chromium
from fake_model import assert_idle
from PIL import Image
from scripted import scripted_pipeline
from serving import ALIAS, MODEL, Held, LiveServer, chat_pipeline, eventually, model_of, serving

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
expect = playwright.expect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium on the PATH, or its path in $CHROMIUM"),
]

TEXT = "one two three four five six seven eight nine ten"
CHAT = "**/v1/chat/completions"


class Chat:
    """The page of a server in a window of its own. problems: what the browser complained about."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **settings)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.addresses: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._on_message)
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("dialog", self._on_dialog)
        self.agrees: bool | None = None  # to the next dialog, which otherwise is a problem

    def _on_message(self, message: Any) -> None:
        # Errors of the API are shown on the page; the browser logs their statuses too.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def _on_dialog(self, dialog: Any) -> None:
        if self.agrees is None:
            self.problems.append(f"a dialog: {dialog.message}")
        dialog.accept() if self.agrees else dialog.dismiss()
        self.agrees = None

    def open(self, server: LiveServer) -> Chat:
        self.page.goto(server.url)
        expect(self("#send")).to_be_enabled()
        return self

    def __call__(self, selector: str) -> Any:
        return self.page.locator(selector)

    @property
    def answer(self) -> Any:
        """The text of the last answer."""
        return self(".turn:last-child .markdown")

    def ask(self, text: str) -> Any:
        """Asks a question; returns the body of its request."""
        self("#question").fill(text)
        with self.page.expect_request(CHAT) as request:
            self("#question").press("Enter")
        return json.loads(request.value.post_data)

    def wait(self) -> None:
        expect(self("#send")).to_be_visible()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=30_000)
    with chromium() as browser:
        yield browser


@pytest.fixture
def chat(browser: Any) -> Iterator[Chat]:
    chat = Chat(browser)
    yield chat
    chat.context.close()
    assert not chat.problems


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with serving(scripted_pipeline(TEXT)) as server:
        yield server
        eventually(lambda: server.service.num_admitted == 0)
    assert_idle(server.pipe)


def picture(width: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 30), "teal").save(file, "PNG")
    return file.getvalue()


def hold_after(server: LiveServer, num_steps: int) -> Held:
    """The engine waits in the step after so many."""
    held = Held(server)
    wait = model_of(server).during_step
    model_of(server).during_step = lambda: wait() if len(model_of(server).steps) >= num_steps else None
    return held


def test_an_answer_is_streamed(chat: Chat, server: LiveServer) -> None:
    held = hold_after(server, 5)
    chat.open(server)
    body = chat.ask("Why?")
    assert held.is_held.wait(30)
    expect(chat.answer).to_have_text(re.compile("^one two"))
    assert "ten" not in chat.answer.inner_text()
    expect(chat("#stop")).to_be_visible()
    held.may_go_on.set()
    chat.wait()
    expect(chat.answer).to_have_text(TEXT)
    expect(chat(".statistics")).to_have_text(
        re.compile(r"tokens/s · first token after .* s · 11 tokens · prompt \d+ t")
    )
    assert body["model"] == MODEL and body["messages"] == [{"role": "user", "content": "Why?"}]
    assert set(body) == {"model", "messages", "stream", "stream_options"}  # the rest is the server's choice


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop_cancels_the_request(chat: Chat, server: LiveServer, way: str, caplog: pytest.LogCaptureFixture) -> None:
    held = hold_after(server, 5)
    chat.open(server)
    with caplog.at_level("INFO", "pipelines"):
        chat.ask("Why?")
        assert held.is_held.wait(30)
        expect(chat.answer).to_have_text(re.compile("^one two"))
        chat.button("Stop").click() if way == "button" else chat("#question").press("Escape")
        expect(chat(".statistics")).to_have_text(re.compile("^stopped"))
        eventually(lambda: "/v1/chat/completions" in caplog.text)  # the server is done with it
    held.may_go_on.set()
    eventually(lambda: server.service.num_admitted == 0)
    assert len(model_of(server).steps) < len(TEXT.split())
    assert "ten" not in chat.answer.inner_text()
    assert chat.ask("And?")["messages"][1]["content"].startswith("one two")
    chat.wait()
    expect(chat.answer).to_have_text(TEXT)


def test_the_key_is_asked_for_until_it_is_right(chat: Chat) -> None:
    with serving(scripted_pipeline(TEXT), api_key="right") as server:
        chat.open(server)
        expect(chat("#key-reason")).to_have_text("This server asks for an API key.")
        chat("#key").fill("wrong")
        chat("#key").press("Enter")
        expect(chat("#key-reason")).to_have_text("The server refused this key.")
        chat("#key").fill("right")
        chat.button("Use key").click()
        expect(chat("#model")).to_have_value(MODEL)
        chat.ask("Why?")
        expect(chat.answer).to_have_text(TEXT)
        kept = chat.page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage), location.href]")
        assert ["right" in each for each in kept] == [False, True, False]
        chat.page.reload()
        expect(chat("#model")).to_have_value(MODEL)
        expect(chat("#key-dialog")).to_be_hidden()


def test_without_a_key_the_question_says_why_it_has_no_answer(chat: Chat) -> None:
    with serving(scripted_pipeline(TEXT), api_key="right") as server:
        chat.open(server)
        chat.button("Cancel").click()
        expect(chat("#key-dialog")).to_be_hidden()
        for answer in (lambda: chat.page.keyboard.press("Escape"), chat.button("Cancel").click):
            chat.ask("Why?")
            expect(chat("#key-dialog")).to_be_visible()
            answer()
            expect(chat(".error").last).to_contain_text("The API key is missing or wrong")
        expect(chat("#model option")).to_have_count(0)
        chat.ask("Why?")
        chat("#key").fill("right")
        chat("#key").press("Enter")
        expect(chat.answer).to_have_text(TEXT)
        expect(chat("#model")).to_have_value(MODEL)


def test_an_error_in_mid_stream_is_shown_and_the_turn_can_be_repeated(chat: Chat, server: LiveServer) -> None:
    model, failures = model_of(server), [RuntimeError("a defect")]

    def fail_once() -> None:
        if len(model.steps) >= 5 and failures:
            model.failures.append(failures.pop())

    model.during_step = fail_once
    chat.open(server)
    chat.ask("Why?")
    expect(chat(".error")).to_contain_text("The request failed in the engine")
    expect(chat.answer).to_have_text(re.compile("^one two"))
    with chat.page.expect_request(CHAT) as request:
        chat.button("Regenerate").click()
    assert len(json.loads(request.value.post_data)["messages"]) == 1
    expect(chat.answer).to_have_text(TEXT)
    expect(chat(".error")).to_be_hidden()


def test_a_stream_that_just_ends_is_an_error(chat: Chat, server: LiveServer) -> None:
    chunk = {"choices": [{"delta": {"content": "half"}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\n"
    chat.context.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    chat.open(server).ask("Why?")
    expect(chat.answer).to_have_text("half")
    expect(chat(".error")).to_contain_text("ended before the answer was complete")


def dispatch_file(chat: Chat, kind: str) -> None:
    """Drops or pastes a picture, as the browser would."""
    script = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
        document.getElementById("question").dispatchEvent(event);
    }"""
    chat.page.evaluate(script, [kind, list(picture())])


def test_images_are_attached_and_sent(chat: Chat, server: LiveServer) -> None:
    chat.open(server)
    chat("#files").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    expect(chat("#attachments img")).to_have_count(1)
    dispatch_file(chat, "paste")
    expect(chat("#attachments img")).to_have_count(2)
    dispatch_file(chat, "drop")
    expect(chat("#attachments img")).to_have_count(3)
    chat.agrees = True
    with chat.page.expect_event("dialog") as dialog:
        chat("#files").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
    assert dialog.value.message == "Only images can be attached."
    chat.button("Remove image 2").click()
    expect(chat("#attachments img")).to_have_count(2)
    *images, text = chat.ask("What?")["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    assert [image["image_url"]["url"].partition(",")[0] for image in images] == ["data:image/png;base64"] * 2
    expect(chat.answer).to_have_text(TEXT)
    expect(chat(".question img")).to_have_count(2)
    assert chat.page.evaluate("[...document.images].every((image) => image.naturalWidth === 40)")
    assert model_of(server).compiled == ["decoder", "decoder_for_images"]
    expect(chat("#attachments img")).to_have_count(0)


def test_a_model_without_images_says_so_and_the_conversation_goes_on(chat: Chat) -> None:
    with serving(scripted_pipeline(TEXT, takes_images=False)) as server:
        chat.open(server)
        chat("#files").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
        chat.ask("What?")
        expect(chat(".error")).to_have_text("The model takes text alone: leave the images out.")
        expect(chat(".statistics")).to_have_text("no answer: the model won't see this turn")
        assert chat.ask("Why?")["messages"] == [{"role": "user", "content": "Why?"}]
        expect(chat.answer).to_have_text(TEXT)


HOSTILE = """<img src=x onerror="window.isRun = true"> </script><script>window.isRun = true</script> <b>bold</b>
[link](javascript:window.isRun=true) [data](data:text/html,x) ![image](http://127.0.0.1:9/a.png) <http://a.example/>

```html"onclick="x
<iframe src="http://127.0.0.1:9/"></iframe></script>
```

- <style>body { display: none }</style>
| <svg onload=x> | b |
| --- | --- |
| <base href="//127.0.0.1:9"> | &lt; |
"""


def test_text_of_the_model_stays_text(chat: Chat) -> None:
    with serving(scripted_pipeline(f"<think><img src=x onerror=alert(1)></think>{HOSTILE}")) as server:
        chat.open(server)
        chat.ask("<img src=x onerror=alert(1)>")
        chat.wait()
        text = chat.answer.inner_text()
        for piece in (
            "<img src=x onerror=",
            "</script><script>",
            "<b>bold</b>",
            "(javascript:",
            "<iframe",
            "<svg",
            "&lt;",
        ):
            assert piece in text
        assert chat(".bubble").inner_text() == "<img src=x onerror=alert(1)>"
        names = chat.page.evaluate("[...document.querySelectorAll('#conversation *')].map((each) => each.localName)")
        assert not {"img", "script", "style", "iframe", "svg", "base", "b"} & set(names)
        links = chat("#conversation a").evaluate_all("links => links.map((a) => [a.href, a.rel, a.target])")
        assert links == [
            ["http://127.0.0.1:9/a.png", "noopener noreferrer", "_blank"],
            ["http://a.example/", "noopener noreferrer", "_blank"],
        ]
        assert chat.page.evaluate("window.isRun === undefined")
        assert all(address.startswith(f"{server.url}/") for address in chat.addresses if address[:5] != "data:")


def test_the_browser_would_refuse_markup_scripts_and_other_servers(chat: Chat, server: LiveServer) -> None:
    chat.open(server)
    ways = {
        "markup": "document.body.innerHTML = '<b>x</b>'",
        "script": "document.body.append(Object.assign(document.createElement('script'), { text: 'window.isRun = 1' }))",
        "server": "return fetch('http://127.0.0.1:9/')",
        "frame": "document.body.append(Object.assign(document.createElement('iframe'), { src: '/' }))",
    }
    for way in ways.values():
        violation = """new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", () => resolve(true), { once: true });
            (async () => { %s })().catch(() => {});
        })"""
        assert chat.page.evaluate(violation % way)
    assert chat.page.evaluate("window.isRun === undefined")
    assert chat.problems  # the browser's log has each of them
    chat.problems.clear()


def test_a_reload_keeps_the_conversation_and_ends_the_request(chat: Chat, server: LiveServer) -> None:
    chat.open(server)
    chat.ask("Why?")
    chat.wait()
    model_of(server).steps.clear()
    held = hold_after(server, 5)
    chat.ask("And?")
    assert held.is_held.wait(30)
    expect(chat.answer).to_have_text(re.compile("^one two"))
    chat.page.reload()
    expect(chat(".bubble")).to_have_text(["Why?", "And?"])
    held.may_go_on.set()
    eventually(lambda: server.service.num_admitted == 0)
    expect(chat(".turn:first-child .markdown")).to_have_text(TEXT)
    expect(chat.answer).to_have_text(re.compile("^one two"))
    expect(chat(".turn:last-child .statistics")).to_have_text(re.compile("^stopped"))


def test_the_last_question_can_be_edited_and_the_answer_repeated(chat: Chat, server: LiveServer) -> None:
    chat.open(server)
    for text in ("First", "Secnd"):
        chat.ask(text)
        chat.wait()
    chat("#question").fill("a draft")
    chat.button("Edit").click()
    expect(chat("#question")).to_have_value("Secnd")
    chat("#question").press("Escape")
    expect(chat("#question")).to_have_value("a draft")
    chat.button("Edit").click()
    assert [message["content"] for message in chat.ask("Second")["messages"]] == ["First", TEXT, "Second"]
    chat.wait()
    expect(chat(".bubble")).to_have_text(["First", "Second"])
    with chat.page.expect_request(CHAT) as request:
        chat.button("Regenerate").click()
    assert [m["content"] for m in json.loads(request.value.post_data)["messages"]] == ["First", TEXT, "Second"]
    chat.wait()
    expect(chat(".markdown")).to_have_text([TEXT, TEXT])


def test_a_new_chat_forgets(chat: Chat, server: LiveServer) -> None:
    chat.open(server)
    chat.ask("Why?")
    chat.wait()
    chat.agrees = False
    chat.button("New chat").click()
    expect(chat(".turn")).to_have_count(1)
    chat.agrees = True
    chat.button("New chat").click()
    expect(chat(".turn")).to_have_count(0)
    expect(chat("#welcome")).to_be_visible()
    chat.page.reload()
    expect(chat("#send")).to_be_enabled()
    expect(chat(".turn")).to_have_count(0)


def test_the_conversation_is_exported_and_copied(chat: Chat, tmp_path: Path) -> None:
    answer = "<think>hm</think>Say:\n\n```sh\necho **a**\n```"
    with serving(scripted_pipeline(answer)) as server:
        chat.open(server)
        chat.ask("Why?")
        chat.wait()
        with chat.page.expect_download() as download:
            chat.button("Export").click()
        download.value.save_as(tmp_path / "chat.json")
        exported = json.loads((tmp_path / "chat.json").read_text())
        assert exported["model"] == MODEL
        question, written = exported["messages"]
        assert question == {"role": "user", "content": "Why?"}
        assert (written["role"], written["content"], written["reasoning_content"]) == ("assistant", answer[17:], "hm")
        assert written["finish_reason"] == "stop" and written["usage"]["completion_tokens"] > 5
        for button, text in ((".code button", "echo **a**"), (".answer > .actions button", answer[17:])):
            chat(button).first.click()
            expect(chat(button).first).to_have_text("Copied")
            assert chat.page.evaluate("navigator.clipboard.readText()") == text
        # As over plain HTTP from another machine.
        chat.page.evaluate("clipboard = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', {})")
        chat(".code button").click()
        expect(chat(".code button")).to_have_text("Copied")
        assert chat.page.evaluate("clipboard.readText()") == "echo **a**"


def test_settings_are_sent_and_kept(chat: Chat, server: LiveServer) -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "max_tokens": 4, "seed": 0}
    chat.open(server)
    chat("#model").select_option(ALIAS)
    chat.button("Settings").click()
    for name, value in {**given, "system": "Be brief."}.items():
        chat(f"[name={name}]").fill(str(value))
    chat.button("Done").click()
    for _ in range(2):
        expect(chat("#model")).to_have_value(ALIAS)
        body = chat.ask("Why?")
        assert body.items() >= {**given, "model": ALIAS}.items()
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        chat.wait()
        expect(chat.answer).to_have_text("one two three four")
        expect(chat(".turn:last-child .statistics")).to_have_text(re.compile("^cut off at the limit of tokens"))
        chat.page.reload()
        expect(chat("#send")).to_be_enabled()
    chat.button("Settings").click()
    chat("[name=top_p]").fill("7")
    chat.page.keyboard.press("Escape")
    chat.ask("Why?")
    expect(chat(".error").last).to_contain_text("top_p")
    chat.button("Settings").click()
    chat.button("Clear").click()
    chat.page.keyboard.press("Escape")
    assert not given.keys() & chat.ask("Why?").keys()
    chat.wait()


def test_reasoning_can_be_opened(chat: Chat) -> None:
    with serving(scripted_pipeline(f"<think>hm, let me see</think>{TEXT}")) as server:
        held = hold_after(server, 3)
        chat.open(server)
        chat.ask("Why?")
        assert held.is_held.wait(30)
        expect(chat("summary")).to_have_text("Thinking…")
        expect(chat(".reasoning div")).to_be_hidden()
        chat("summary").click()
        held.may_go_on.set()
        chat.wait()
        expect(chat("summary")).to_have_text("Reasoning")
        expect(chat(".reasoning div")).to_have_text("hm, let me see")
        expect(chat(".reasoning div")).to_be_visible()
        expect(chat.answer).to_have_text(TEXT)
        assert chat.ask("And?")["messages"][1] == {"role": "assistant", "content": TEXT}
        chat.wait()


def test_a_loading_server_and_one_that_is_gone(chat: Chat) -> None:
    server = LiveServer(scripted_pipeline(TEXT))
    try:
        chat.page.goto(server.url)
        expect(chat("#problem")).to_have_text("Not ready: The model is being loaded…")
        chat("#question").fill("Why?")
        chat("#question").press("Enter")
        expect(chat("#send")).to_be_disabled()
        expect(chat(".turn")).to_have_count(0)
        server.may_load.set()
        expect(chat("#send")).to_be_enabled()
        expect(chat("#problem")).to_be_hidden()
        expect(chat("#context-length")).to_contain_text("4,000 tokens")
        chat("#question").press("Enter")
        expect(chat.answer).to_have_text(TEXT)
        chat.wait()
    finally:
        server.may_load.set()
        server.begin_shutdown()
        server.wait()
    chat.ask("And?")
    expect(chat(".error").last).to_contain_text("can't be reached")
    expect(chat("#problem")).to_contain_text("can't be reached")
    expect(chat("#send")).to_be_disabled()


def test_shift_enter_breaks_the_line(chat: Chat, server: LiveServer) -> None:
    chat.open(server)
    height = chat("#question").bounding_box()["height"]
    chat("#question").press("a")
    chat("#question").press("Shift+Enter")
    chat("#question").press("b")
    expect(chat("#question")).to_have_value("a\nb")
    assert chat("#question").bounding_box()["height"] > height
    assert chat.ask("a\nb")["messages"][0]["content"] == "a\nb"
    chat.wait()
    assert chat("#question").bounding_box()["height"] == height


WIDE = f"""{"wide" * 100} `{"code" * 50}` https://a.example/{"path" * 50}

```
{"long line " * 40}
```

| {"cell | " * 30}
| {"--- | " * 30}
| {"cell | " * 30}

1. - > {"nested" * 50}
"""


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_wider_or_higher_than_the_window(browser: Any, width: int) -> None:
    chat = Chat(browser, viewport={"width": width, "height": 600})
    try:
        with serving(scripted_pipeline(f"<think>{'deep' * 100}</think>{WIDE}")) as server:
            chat.open(server)
            chat("#files").set_input_files([{"name": "a", "mimeType": "image/png", "buffer": picture()}] * 8)
            chat.ask("question" * 50)
            chat.wait()
            assert chat.page.evaluate("scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight") < 60
            chat("summary").click()
            sizes = "[document.documentElement, scroller].map((each) => each.scrollWidth - each.clientWidth)"
            assert chat.page.evaluate(sizes) == [0, 0]
            assert chat.page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0
            for selector in (".code pre", ".table"):  # what is wide scrolls by itself
                scrolled = chat(selector).evaluate("(wide) => { wide.scrollLeft = 100; return wide.scrollLeft; }")
                assert (
                    scrolled == 100 and chat(selector).evaluate("(wide) => getComputedStyle(wide).overflowX") == "auto"
                )
            for name in ("Send", "Settings", "Export", "New chat"):
                box = chat.button(name).bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 600
    finally:
        chat.context.close()
    assert not chat.problems


CONTRAST = """() => {
    const style = getComputedStyle(document.documentElement);
    const light = (name) => {
        const context = document.createElement("canvas").getContext("2d");
        context.fillStyle = style.getPropertyValue(name);
        const [r, g, b] = context.fillStyle.match(/[0-9a-f]{2}/g).map((each) => parseInt(each, 16) / 255)
            .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_controls_have_names(browser: Any, server: LiveServer, scheme: str) -> None:
    chat = Chat(browser, color_scheme=scheme).open(server)
    pairs = [(text, page) for text in ("--text", "--muted") for page in ("--page", "--raised")]
    pairs += [("--on-accent", "--accent"), ("--alarm", "--alarm-page"), ("--accent", "--page")]
    for pair in pairs:
        ratio = chat.page.evaluate(f"pair => ({CONTRAST})()(...pair)", list(pair))
        assert ratio >= 4.5, pair
    light = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (scheme == "light")
    unnamed = """[...document.querySelectorAll("button, input, select, textarea")].filter(
        (each) => !(each.ariaLabel || each.labels?.length || each.textContent.trim())).length"""
    assert chat.page.evaluate(unnamed) == 0
    chat.context.close()
    assert not chat.problems


EVENTS = 'data: {"a": "é€😀"}\n\nevent: x\ndata:two\ndata: lines\n\n: comment\n\ndata: [DONE]\n\ndata: cut'


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_they_are_cut(opened: Chat, size: int, line_end: str) -> None:
    script = """async ([bytes, size]) => {
        const pieces = [];
        for (let i = 0; i < bytes.length; i += size) pieces.push(new Uint8Array(bytes.slice(i, i + size)));
        const pull = (queue) => pieces.length ? queue.enqueue(pieces.shift()) : queue.close();
        const events = [];
        for await (const data of serverSentEvents(new ReadableStream({ pull }))) events.push(data);
        return events;
    }"""
    data = list(EVENTS.replace("\n", line_end).encode())
    assert opened.page.evaluate(script, [data, size]) == ['{"a": "é€😀"}', "two\nlines", "[DONE]"]


@pytest.fixture(scope="module")
def opened(browser: Any) -> Iterator[Chat]:
    """A page whose functions are called."""
    with serving(chat_pipeline()) as server:
        chat = Chat(browser).open(server)
        yield chat
        chat.context.close()
    assert not chat.problems


MARKDOWN = {
    "a *b* **c** ***d*** `e*f*` snake_case_name 2 * 3 * 4": "<p>a <em>b</em> <strong>c</strong> "
    "<strong><em>d</em></strong> <code>e*f*</code> snake_case_name 2 * 3 * 4</p>",
    r"\*a\* ``b`c`` **重点**是": "<p>*a* <code>b`c</code> <strong>重点</strong>是</p>",
    "# A\n### B ##\ntext\nmore\n\n---": "<h1>A</h1><h3>B</h3><p>text\nmore</p><hr>",
    "- a\n- b\n  - c\n    d\n- e\n\n1) f\n2) g": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c\nd</p></li></ul></li>"
    '<li><p>e</p></li></ul><ol start="1"><li><p>f</p></li><li><p>g</p></li></ol>',
    "3. a\n\n   b\n\n4. c\n\nd": '<ol start="3"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol><p>d</p>',
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li><p>b</p></li></ul></blockquote><p>c</p>",
    "| a | b |\n|---|:-:|\n| `c` | d |": '<div class="table" tabindex="0"><table><tr><th>a</th><th>b</th></tr>'
    "<tr><td><code>c</code></td><td>d</td></tr></table></div>",
    "[a](https://b.example/c_(d)) [e](ftp://f) https://g.example/h.": '<p><a href="https://b.example/c_(d)">a</a>'
    ' [e](ftp://f) <a href="https://g.example/h">https://g.example/h</a>.</p>',
    "": "",
}


@pytest.mark.parametrize("text", MARKDOWN, ids=range(len(MARKDOWN)))
def test_markdown(opened: Chat, text: str) -> None:
    html = opened.page.evaluate("text => renderMarkdown(document.createElement('div'), text).innerHTML", text)
    assert re.sub(' (target|rel)="[^"]*"', "", html) == MARKDOWN[text]


def test_code_blocks_keep_their_text(opened: Chat) -> None:
    text = "a\n```python\nif x:\n\n    y = '``'  # <b>\n```\n- b\n  ```\n  c\n    d\n  ```\n"
    text += "~~~~\n```\n~~~\n~~~~\n```js\nopen"
    script = """text => [...renderMarkdown(document.createElement("div"), text).querySelectorAll(".code")].map(
        (each) => [each.querySelector("figcaption").firstChild.textContent, each.querySelector("code").textContent])"""
    assert opened.page.evaluate(script, text) == [
        ["python", "if x:\n\n    y = '``'  # <b>"],
        ["text", "c\n  d"],
        ["text", "```\n~~~"],
        ["js", "open"],
    ]


@pytest.mark.parametrize("text", [*MARKDOWN, WIDE, HOSTILE], ids=range(len(MARKDOWN) + 2))
def test_text_that_grows_ends_as_if_it_had_come_at_once(opened: Chat, text: str) -> None:
    script = """text => {
        const [grown, whole] = [document.createElement("div"), document.createElement("div")];
        for (let i = 0; i <= text.length; i++) renderMarkdown(grown, text.slice(0, i));
        return grown.innerHTML === renderMarkdown(whole, text).innerHTML;
    }"""
    assert opened.page.evaluate(script, text)


def test_blocks_that_have_not_changed_keep_their_nodes(opened: Chat) -> None:
    script = """() => {
        const parent = document.createElement("div");
        renderMarkdown(parent, "a\\n\\nb");
        const [first, last] = parent.children;
        renderMarkdown(parent, "a\\n\\nb c");
        return [parent.children[0] === first, parent.children[1] === last];
    }"""
    assert opened.page.evaluate(script) == [True, False]


NESTED: dict[str, Callable[[int], str]] = {
    "lists": lambda n: "* - " * n,
    "quotes": lambda n: "> " * n,
    "marks": lambda n: "*_**`[" * n,
    "ticks": lambda n: " ".join("`" * (1 + i % 3) for i in range(n)),
    "links": lambda n: "[a](https://" * n,
    "indents": lambda n: "\n".join(" " * (2 * i % 60) + "- a" for i in range(n)),
    "tables": lambda n: "|a" * n + "\n" + "|-" * n + "|",
    "fence": lambda n: "```" + "a" * 20 * n + "`",
    "heading": lambda n: "# " + " " * 2 * n + "a",
    "rule": lambda n: "- " * 10 * n + "a",
    "table rule": lambda n: "a|\n|" + "-" * 10 * n + "a",
    "fences": lambda n: "```\n" * (2 * n + 1),
}


@pytest.mark.parametrize("name", NESTED)
def test_no_text_is_too_deep(opened: Chat, name: str) -> None:
    text = NESTED[name](3000)
    shown = opened.page.evaluate("text => renderMarkdown(document.createElement('div'), text).textContent", text)
    assert shown
