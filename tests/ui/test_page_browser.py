"""The page in a headless browser: a clip is made through it, on a desk and on a phone, with a mouse and with the keyboard alone."""

import json
import re

import httpx
import pytest
from opened import Running, clips_of, drop, wait_until

from lynx_video.media.provenance import read_provenance
from lynx_video.media.video import read_metadata

NARROW = 390


SEEN = """() => {
  window.seen = [];
  const look = () => {
    const stage = document.querySelector("#stage"), make = document.querySelector("#make");
    window.seen.push([stage?.innerText ?? "", !!stage?.querySelector("img[alt^='The first frame after step']"), make.disabled]);
  };
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true, attributes: true });
}"""
"""Keeps in `window.seen` what the stage said, whether it had a preview, and whether the button waited: a quick clip is not missed."""


def few_steps(page, steps=3):
    """Make clips short: open the fold and say so."""
    page.get_by_role("button", name="Advanced").click()
    page.fill("#knob-num_inference_steps input", str(steps))


def made(page, seconds=400):
    """Wait for the clip; the sentence on its likeness."""
    page.wait_for_selector("#result-video video", timeout=seconds * 1000)
    return page.inner_text("#result-facts .verdict")


def fits(page):
    """Whether nothing is cut off to the right."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_clip_is_made_through_the_page(page_process, visit, pictures):
    page = visit(page_process)
    before = clips_of(page_process)
    drop(page, pictures["three"])
    page.wait_for_selector("text=3 faces found. Face 0 is chosen because it is the largest")
    assert page.get_by_role("group", name="Which face").get_by_role("radio").count() == 3

    picture = page.locator("#picture img")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.17, "y": box["height"] * 0.55})  # the left one: number 1
    page.wait_for_selector("text=Face 1 is chosen;")
    assert page.get_by_label("Face 1: ").is_checked()

    page.get_by_role("button", name="smiles, red shirt, blue wall").click()
    prompt = "the person smiles wearing a red shirt in front of a blue wall"
    wait_until(lambda: page.input_value("#prompt textarea") == prompt)
    few_steps(page, 12)
    page.fill("#seed input", "5")
    page.evaluate(SEEN)
    page.get_by_role("button", name="Make the clip").click()
    said = made(page)
    seen = page.evaluate("window.seen")
    assert any(re.search(r"Step \d+ of 12, about .* left\.", words) and preview and waits for words, preview, waits in seen)
    (clip,) = [one for one in clips_of(page_process) if one not in before]
    found = read_provenance(clip)
    assert found.state == "untouched"
    assert said.startswith(f"Similarity {found.record['similarity']:.2f}: ")
    assert [found.record[name] for name in ("prompt", "seed", "face_index", "num_inference_steps")] == [prompt, 5, 1, 12]
    assert found.record["portrait"] == "three.png"
    assert page.get_by_role("button", name="Make the clip").is_enabled()
    playing = page.evaluate(
        "(() => { const v = document.querySelector('#result-video video'); return [v.videoWidth, v.error]; })()"
    )
    assert playing == [64, None]

    with page.expect_download() as download:
        page.click("#result-clip")
    assert download.value.suggested_filename == clip.name
    assert download.value.path().read_bytes() == clip.read_bytes()
    with page.expect_download() as download:
        page.click("#result-settings")
    assert json.loads(download.value.path().read_text()) == read_metadata(clip)
    assert fits(page)


def test_what_is_wrong_is_said_beside_it(page_process, visit, pictures):
    page = visit(page_process)
    for which, words in (
        ("text", "text.png: not a picture"),
        ("none", "none.png: No face was found"),
        ("dot", "at least 32"),
        ("huge", "100 megapixels"),
    ):
        drop(page, pictures[which])
        page.wait_for_selector(f"[role=alert] >> text={words}")
        page.get_by_label("Clear").first.click()
        page.wait_for_selector("#portrait [data-testid=upload-text]")
    make, notice = page.get_by_role("button", name="Make the clip"), page.locator("#notice")
    make.click()
    page.wait_for_selector("#notice >> text=There is no portrait yet")
    drop(page, pictures["small"])
    page.wait_for_selector("text=The face is small")
    make.click()
    page.wait_for_selector("#notice >> text=The prompt is empty")
    page.fill("#prompt textarea", "word " * 10_000)
    make.click()
    page.wait_for_selector("#notice >> text=The prompt has 50000 characters")
    page.fill("#prompt textarea", "the person nods")
    few_steps(page)
    page.fill("#knob-width input", "60")
    page.wait_for_selector("text=exact: not possible")
    make.click()
    page.wait_for_selector("#notice >> text=the nearest good values are 56 or 64")
    assert notice.locator("[role=alert]").count() == 1
    before = clips_of(page_process)
    page.fill("#knob-width input", "64")
    page.fill("#knob-num_inference_steps input", "900")
    make.click()
    page.wait_for_selector("#stage >> text=/Step [0-9]+ of 900/")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#stage >> text=Cancelled; nothing was kept.")
    assert make.is_enabled()
    assert clips_of(page_process) == before


def test_on_a_phone_with_the_keyboard_alone(page_process, visit, pictures):
    page = visit(page_process, NARROW, has_touch=True)
    assert fits(page)
    before = clips_of(page_process)

    def tab_to(name):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(
                "name => { const e = document.activeElement; return [e.ariaLabel, e.innerText, e.labels?.[0]?.innerText, e.placeholder]"
                ".some(said => said?.trim().startsWith(name)); }",
                name,
            ):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", (
                    f"{name} shows no focus"
                )
                return
        raise AssertionError(f"{name} is not reached by Tab")

    # Listened for from the beginning: right before the key the browser may not know in time that its chooser is wanted.
    page.on("filechooser", lambda chooser: chooser.set_files(str(pictures["three"])))
    tab_to("Click to upload")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=3 faces found")
    tab_to("Face 2")
    page.keyboard.press("Space")
    page.wait_for_selector("text=Face 2 is chosen;")
    tab_to("What does the person do?")
    page.keyboard.type("the person nods")
    tab_to("draft: about")
    page.keyboard.press("Space")
    wait_until(
        lambda: (
            page.input_value("#knob-guidance_scale_i input[type=number]") != ""
            and page.get_by_label("draft: about").is_checked()
        )
    )
    tab_to("New seed")
    page.keyboard.press("Enter")
    wait_until(lambda: page.input_value("#seed input") != "42")
    seed = int(page.input_value("#seed input"))
    tab_to("Make the clip")
    page.keyboard.press("Enter")
    assert made(page).startswith("Similarity ")
    (clip,) = [one for one in clips_of(page_process) if one not in before]
    record = read_metadata(clip)
    assert [record[name] for name in ("seed", "face_index", "preset", "prompt")] == [seed, 2, "draft", "the person nods"]
    assert fits(page)
    sizes = page.evaluate(
        "[...document.querySelectorAll('button.lg')].filter(e => e.offsetParent).map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 44

    page.get_by_role("tab", name="Past clips").press("Enter")
    first = page.get_by_role("button", name="the person nods").first
    first.press("Enter")
    page.wait_for_selector("#past-video video")
    assert f"Seed\n{seed}" in page.inner_text("#past-facts")
    page.get_by_role("button", name="Use these settings again").press("Enter")
    page.wait_for_selector("#notice >> text=The settings are those of the clip.")
    assert int(page.input_value("#seed input")) == seed
    assert fits(page)


def test_files_of_the_page_and_no_others(page_process, visit, pictures):
    page = visit(page_process)
    drop(page, pictures["one"])
    page.wait_for_selector("#picture img")
    shown = page.get_attribute("#picture img", "src")
    answers = {}
    with httpx.Client(base_url=page_process.url, timeout=60) as client:
        assert client.get(shown).status_code == 200
        secret = page_process.folder / "secret.txt"
        secret.write_text("secret")
        for path in (secret, page_process.folder / "log", page_process.folder / "clips", "/etc/passwd", pictures["one"]):
            answers[str(path)] = client.get(f"gradio_api/file={path}").status_code
        for path in ("http://example.org/", "https://127.0.0.1/"):
            answers[path] = client.get(f"gradio_api/file={path}").status_code
        stolen = {"path": str(secret), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        fetched = {**stolen, "path": page_process.url}
        config = client.get("config").json()
        receive = next(one["id"] for one in config["dependencies"] if one["api_name"] == "receive")
        for data, status in ((fetched, 403), (stolen, 200)):
            asked = {"data": [data], "fn_index": receive, "session_hash": "stranger", "event_data": None, "trigger_id": None}
            assert client.post("gradio_api/queue/join", json=asked).status_code == status
        with client.stream("GET", "gradio_api/queue/data", params={"session_hash": "stranger"}) as stream:
            told = next(line for line in stream.iter_lines() if "process_completed" in line)
        assert '"success":false' in told
        assert "secret" not in told.replace("secret.txt", "")
        assert client.get("", headers={"Host": "elsewhere.example.org"}).status_code == 400
        big = client.post("gradio_api/upload", files={"files": ("big.png", b"0" * (33 * 2**20))})
        assert big.status_code == 413
    assert set(answers.values()) == {403}, answers
    made_here = {one.name for one in page_process.folder.iterdir()} - {"log", "clips", "secret.txt"}
    assert made_here == set()


@pytest.mark.slow
def test_who_agreed_goes_with_the_portrait(page_process, visit, pictures):
    page = visit(page_process)
    page.get_by_role("button", name="Consent, privacy, watermark").click()
    page.fill("#consent textarea", "Ann, by letter")
    drop(page, pictures["one"])
    page.wait_for_selector("text=One face found")
    assert page.input_value("#consent textarea") == "Ann, by letter"
    page.locator("#portrait button[aria-label='Clear']").click()
    drop(page, pictures["three"])
    page.wait_for_selector("text=/faces found/i")
    assert page.input_value("#consent textarea") == ""


@pytest.mark.slow
def test_a_clip_goes_on_without_its_page_and_survives_a_restart(tmp_path, visit, pictures):
    first = Running(tmp_path)
    try:
        page = visit(first, leaves=True)
        drop(page, pictures["one"])
        page.wait_for_selector("text=One face found")
        page.fill("#prompt textarea", "the person nods")
        few_steps(page, 200)
        page.get_by_role("button", name="Make the clip").click()
        page.wait_for_selector("#stage >> text=/Step [0-9]+ of 200/")
        page.reload()  # the same visitor, who comes back and finds the clip as it is
        page.wait_for_selector("#stage >> text=/Step [0-9]+ of 200/")
        page.goto("about:blank")
        wait_until(lambda: clips_of(first), 400)
        page.goto(first.url)
        assert made(page).startswith("Similarity ")
    finally:
        assert first.stop() == (0, [])
    (clip,) = clips_of(first)
    second = Running(tmp_path)
    try:
        page = visit(second, leaves=True)
        page.get_by_role("tab", name="Past clips").click()
        page.get_by_role("button", name="the person nods").click()
        page.wait_for_selector("#past-video video")
        assert "untouched" in page.inner_text("#past-facts").lower()
        assert "200 steps" in page.inner_text("#past-facts")
        page.get_by_role("button", name="Use these settings again").click()
        page.wait_for_selector("text=Clips hold no portrait: drop it above.")
        page.get_by_role("button", name="Advanced").click()
        assert page.input_value("#knob-num_inference_steps input") == "200"
        clip.unlink()
        page.get_by_role("tab", name="Past clips").click()
        page.wait_for_selector("text=There are no clips yet.")
    finally:
        assert second.stop() == (0, [])


@pytest.mark.slow
def test_two_visitors_wait_for_each_other(tmp_path, visit, pictures):
    running = Running(tmp_path)
    try:
        pages = [visit(running) for _ in range(2)]
        for number, page in enumerate(pages):
            drop(page, pictures["one"])
            page.wait_for_selector("text=One face found")
            page.fill("#prompt textarea", f"the person {['nods', 'smiles'][number]}")
            few_steps(page, 200 if number == 0 else 3)
        pages[0].get_by_role("button", name="Make the clip").click()
        pages[0].wait_for_selector("#stage >> text=/Step [0-9]+ of 200/")
        pages[1].get_by_role("button", name="Make the clip").click()
        pages[1].wait_for_selector("text=In the queue: 1 clip comes before yours.")
        for page in pages:
            made(page)
        assert [read_metadata(clip)["prompt"] for clip in clips_of(running)] == ["the person nods", "the person smiles"]
    finally:
        assert running.stop() == (0, [])


@pytest.mark.slow
def test_a_password_is_asked_for(tmp_path, chromium):
    password = tmp_path / "password.txt"
    password.write_text("correct horse battery\n")
    running = Running(tmp_path / "page", "--host", "0.0.0.0", "--password", f"ann:{password}", "--require-consent")
    url = running.url.replace("0.0.0.0", "127.0.0.1")
    try:
        for path in ("config", "gradio_api/queue/status", "gradio_api/info", "gradio_api/file=/etc/passwd"):
            assert httpx.get(url + path, timeout=60).status_code == 401, path
        assert httpx.post(url + "gradio_api/upload", files={"files": b"x"}, timeout=60).status_code == 401
        assert httpx.post(url + "login", data={"username": "ann", "password": "wrong"}, timeout=60).status_code == 400
        page = chromium.new_page()
        page.set_default_timeout(90_000)
        page.goto(url)
        page.get_by_label("username").fill("ann")
        page.get_by_label("password").fill("correct horse battery")
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#make")
        assert page.get_by_label("Who agreed to the use of this face").is_visible()
        page.close()
    finally:
        assert running.stop() == (0, [])
