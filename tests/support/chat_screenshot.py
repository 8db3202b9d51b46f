"""Takes the picture of the chat page in docs/serving.md: `chat_screenshot.py FILE`. A fake model says what is in it."""

from __future__ import annotations

import io
import sys
import time

from browser import chromium
from PIL import Image
from scripted import scripted_pipeline
from serving import model_of, serving

STEP_S = 0.04
QUESTION = "How do I read a large file line by line in Python?"
ANSWER = '''<think>A generator fits: it keeps one line in memory. An example, and what to mind.</think>\
Iterate over the file itself, and **yield** each line, so that one line at a time is in memory:

```python
def read_lines(path):
    """Yields the lines of a file, without their line ends."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\\n")
```

1. The file is open as long as the generator is: it is closed when the last line has been read, or by `close()`.
2. `file.readlines()` would read *all* lines first.
3. More about generators is in the [tutorial](https://docs.python.org/3/tutorial/classes.html#generators).
'''
SECOND = "And if it is compressed?"
SECOND_ANSWER = 'Replace `open(path, ...)` by `gzip.open(path, "rt", encoding="utf-8")`; the rest stays as it is.'


def picture() -> Image.Image:
    """The page after two questions."""
    pipe = scripted_pipeline(ANSWER, SECOND_ANSWER)
    with serving(pipe, served_model_names=("example-model",)) as server, chromium() as browser:
        model_of(server).during_step = lambda: time.sleep(STEP_S)
        page = browser.new_page(viewport={"width": 960, "height": 880}, device_scale_factor=1.5)
        page.goto(server.url)
        for question in (QUESTION, SECOND):
            page.locator("#question").fill(question)
            page.locator("#send:enabled").click()
            page.locator("body:not(.running)").wait_for()
        page.locator("#question").blur()
        return Image.open(io.BytesIO(page.screenshot()))


if __name__ == "__main__":
    picture().convert("RGB").quantize(128).save(sys.argv[1], optimize=True)
