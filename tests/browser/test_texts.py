"""Own text in a browser: several files, folders by drag, and a datastore saved and opened again."""

from importlib.util import find_spec

import pytest

FILE = "[role=tabpanel] input[type=file]"
LINE = "#own-view .own-line"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of notes with an unreadable file, a picture and a hidden file."""
    root = tmp_path / "notes"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.txt").write_text("one two three")
    (root / "deep" / "b.md").write_text("four five")
    (root / "deep" / "er" / "page.html").write_text("<script>no</script><p>six <b>seven</b>")
    (root / "broken.txt").write_bytes(b"\xff\xfe\x00")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / ".hidden.txt").write_text("no")
    return root


def corpus(visit, **options):
    page = visit(**options)
    page.click("button[role=tab]:has-text('Corpus')")
    page.wait_for_selector("#own-files .files-row")
    return page


def left(page):
    return page.locator(".own-left li").all_inner_texts()


@pytest.mark.slow
def test_several_files_are_read_and_those_that_fail_are_named(visit, folder, tmp_path):
    page = corpus(visit)
    large = tmp_path / "large.txt"
    large.write_bytes(b"x" * 9_000_000)
    names = ("a.txt", "deep/b.md", "deep/er/page.html", "broken.txt", "picture.png")
    page.set_input_files(FILE, [*(folder / name for name in names), large])
    page.wait_for_selector(f"{LINE}:has-text('“3 files”: 3 documents, 7 tokens')")
    shown = left(page)
    assert len(shown) == 3
    assert any("large.txt has 9.0 MB; at most" in text for text in shown)
    assert any("1 file of .png, which is not read" in text for text in shown)
    assert any("broken.txt: byte" in text and "UTF-16" in text for text in shown)
    page.set_input_files(FILE, [folder / "broken.txt", folder / "picture.png"])
    page.wait_for_selector("#own-view .alert:has-text('broken.txt: byte')")
    assert "3 documents" in page.inner_text(LINE), "the earlier text stays"
    page.set_input_files(FILE, folder / "picture.png")
    page.wait_for_selector(".files-line:has-text('Nothing to read: 1 file of .png')")
    offered = page.get_attribute(FILE, "accept").split(",")
    assert (".pdf" in offered) == (find_spec("pypdf") is not None) and ".html" in offered
    if ".pdf" not in offered:
        page.set_input_files(FILE, {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b""})
        page.wait_for_selector(".files-line:has-text('1 file of .pdf, which needs pip install')")


@pytest.mark.slow
def test_a_folder_is_read_when_it_is_dropped(visit, folder):
    page = corpus(visit)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    box = page.locator("#own-files").bounding_box()
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    place = {"x": box["x"] + 40, "y": box["y"] + 10, "data": data}
    for kind in ("dragEnter", "dragOver"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place})
    page.wait_for_selector(".files-host[data-over]")
    session.send("Input.dispatchDragEvent", {"type": "drop", **place})
    page.wait_for_selector(f"{LINE}:has-text('“3 files”: 3 documents, 7 tokens')")
    assert len(left(page)) == 2 and not page.locator(".files-host[data-over]").count()
    assert "hidden" not in page.inner_text("#own-view")


@pytest.mark.slow
def test_a_datastore_is_saved_and_opened_again(visit, folder, tmp_path):
    page = corpus(visit)
    assert not page.is_visible("#own-save")
    page.set_input_files(FILE, [folder / "a.txt", folder / "deep" / "b.md"])
    page.wait_for_selector(f"{LINE}:has-text('“2 files”: 2 documents')")
    with page.expect_download() as download:
        page.click("#own-save")
    assert download.value.suggested_filename == "2 files datastore.zip"
    path = tmp_path / "kept.zip"
    download.value.save_as(path)
    other = corpus(visit)
    other.set_input_files(FILE, path)
    other.wait_for_selector(f"{LINE}:has-text('“2 files”: 2 documents, 5 tokens')")
    (tmp_path / "no.zip").write_bytes(b"no")
    other.set_input_files(FILE, tmp_path / "no.zip")
    other.wait_for_selector("#own-view .alert:has-text('no.zip is not a datastore')")
    other.set_input_files(FILE, [path, folder / "a.txt"])
    other.wait_for_selector(f"{LINE}:has-text('“1 file”: 1 document')")
    assert "kept.zip is a saved datastore; open it by itself" in left(other)[0]


def test_names_of_files_are_text(visit, tmp_path):
    page = corpus(visit)
    hostile = tmp_path / "<img src=x onerror=window.hacked=1>.txt"
    hostile.write_text("x y")
    (tmp_path / "<b>.txt").write_bytes(b"\xff")
    (tmp_path / "c.<i>").touch()
    page.set_input_files(FILE, [hostile, tmp_path / "<b>.txt", tmp_path / "c.<i>"])
    page.wait_for_selector(f"{LINE}:has-text('2 tokens'):has-text('kept')")
    assert "1 file of .<i>" in left(page)[0] and "<b>.txt: byte 0" in left(page)[1]
    assert page.locator("#own-view :is(img, b, i:not(.own-bar i))").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.slow
def test_files_are_chosen_on_a_phone(visit, folder):
    page = corpus(visit, phone=True)
    assert not page.locator("#own-folder").count()
    page.set_input_files(FILE, [folder / "a.txt", folder / "deep" / "b.md"])
    page.wait_for_selector(f"{LINE}:has-text('“2 files”: 2 documents')")
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    heights = page.evaluate(
        "[...document.querySelectorAll('.files-row button')].map((b) => b.offsetHeight)"
    )
    assert width <= 0 and min(heights) >= 44


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_beside_files_that_were_left_out(visit, audit, folder, dark):
    page = corpus(visit, dark=dark)
    page.set_input_files(FILE, [folder / "a.txt", folder / "broken.txt"])
    page.wait_for_selector(".own-left li")
    audit(page, "files left out")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 1280, 1440])
def test_the_choice_of_a_datastore_covers_nothing_in_the_head(visit, folder, width):
    page = corpus(visit)
    page.set_viewport_size({"width": width, "height": 860})
    page.set_input_files(FILE, folder / "a.txt")
    page.wait_for_selector(f"{LINE}:has-text('kept for you only')")
    page.wait_for_selector("#store-choice label")
    choice = page.locator("#store-choice .wrap:not([data-testid])").bounding_box()
    for name in (".value-links", "[role=tablist]:visible button:last-of-type"):
        if page.locator(name).first.is_visible():
            box = page.locator(name).last.bounding_box()
            assert box["x"] + box["width"] <= choice["x"], name
