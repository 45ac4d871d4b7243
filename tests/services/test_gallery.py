"""The web page in a real Chromium, in front of the real service with tiny models and a small database."""

import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from remembrandt.databases.database import Database
from tests.support.builds import REPOSITORY
from tests.support.models import TINY_RDM, save_tiny_cascade, save_tiny_rdm
from tests.support.pictures import draw
from tests.support.processes import free_ports, missing, wait_until
from tests.support.ray_cluster import RayCluster

uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, Request, expect  # noqa: E402

from remembrandt.serving.accounts import Accounts, Keys, Limits, Tenants  # noqa: E402
from remembrandt.serving.backend import LocalBackend  # noqa: E402
from remembrandt.serving.config import parse_service  # noqa: E402
from remembrandt.serving.http import create_app  # noqa: E402

pytestmark = pytest.mark.ray
expect.set_options(timeout=60_000)
GALLERY = REPOSITORY / "services" / "gallery"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MARKUP = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Service:
    """Where it is, and keys of a tenant that may do everything and of one that has used up its pictures."""

    url: str
    key: str
    spent_key: str


@pytest.fixture(scope="module")
def service(
    _session_ray_cluster: RayCluster,
    emoji_like_database: str,
    tiny_clip: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("gallery")
    with Database.open(emoji_like_database) as database:
        encoder = database.manifest.encoder
    rdm = save_tiny_rdm(root / "rdm", TINY_RDM.model_copy(update={"context_dim": 64}), encoder=encoder)
    outlines = {"uri": emoji_like_database, "where": {"style": ["outline"]}}
    config = parse_service(
        {
            "accounts": f"sqlite:///{root}/accounts.db",
            "storage": str(root / "storage"),
            "models": {
                "tiny-rdm": {"kind": "rdm", "model": str(rdm), "steps": 4},
                "tiny-cascade": {
                    "kind": "reimagen", "model": str(save_tiny_cascade(root / "cascade", tiny_clip)), "steps": 2,
                },
            },
            "shared": {"drawings": emoji_like_database, "outlines": outlines},
            "encoder": {"model": str(tiny_clip), "precision": "fp32"},
            "telemetry": {"log_format": "text"},
        }
    )  # fmt: skip
    accounts = Accounts(config.accounts_url)
    keys, tenants = Keys(accounts), Tenants(accounts)
    secrets = [
        keys.create(tenants.create(name, limits).id, ["read", "generate", "write"]).secret
        for name, limits in (("painter", Limits()), ("spent", Limits(images_per_day=0)))
    ]
    backend = LocalBackend(config)
    port = free_ports(1)[0]
    server = uvicorn.Server(
        uvicorn.Config(create_app(config, backend, accounts, gallery=GALLERY), port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    with pytest.MonkeyPatch.context() as patch:
        # Builds are processes of their own: they join the session's cluster.
        patch.setenv("RAY_ADDRESS", _session_ray_cluster.address)
        thread.start()
        wait_until(lambda: server.started, "the service starts")
        yield Service(f"http://127.0.0.1:{port}/", *secrets)
    server.should_exit = True
    thread.join()
    backend.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        missing("no chromium is at hand: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def settings() -> dict[str, Any]:
    """Of the browser's window; tests override it."""
    return {"viewport": {"width": 1280, "height": 800}}


@pytest.fixture
def blank(browser: Browser, settings: dict[str, Any]) -> Iterator[Page]:
    """A window without a page. Whatever the console calls an error fails the test."""
    context = browser.new_context(**settings, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    # Chromium itself reports every refusal of the service; that the page words it is what tests look at.
    assert [text for text in problems if not re.search("status of 4(01|00|29)", text)] == []


@pytest.fixture
def page(blank: Page, service: Service) -> Page:
    """The page, its key taken."""
    return entered(blank, service, service.key)


def entered(page: Page, service: Service, key: str) -> Page:
    page.goto(f"{service.url}#key={quote(key)}")
    expect(page.locator("#database option")).not_to_have_count(0, timeout=60_000)
    return page


def paint(page: Page, prompt: str | None = None, button: str = "#go") -> tuple[dict[str, Any], Locator]:
    """Paints; returns what was sent, and the newest run."""
    if prompt is not None:
        page.fill("#prompt", prompt)
    with page.expect_request("**/v1/images/generations") as sent:
        page.locator(button).first.click()
    return done(page, sent.value)


def done(page: Page, request: Request) -> tuple[dict[str, Any], Locator]:
    run = page.locator(".run").first
    expect(run.locator(".again")).to_be_visible(timeout=60_000)
    expect(page.locator("#go")).to_be_visible()
    return request.post_data_json, run


def neighbors(run: Locator) -> list[str]:
    return run.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.dataset.row)")


def all_loaded(images: Locator) -> bool:
    """Whether every picture is one, and not a broken link."""
    script = "images => Promise.all(images.map((i) => i.decode().then(() => i.naturalWidth > 0)))"
    return all(images.evaluate_all(script))


def test_a_prompt_gives_pictures_beside_their_neighbours(page: Page) -> None:
    body, run = paint(page, "a red circle")
    assert (body["prompt"], body["stream"], body["partial_images"]) == ("a red circle", True, 3)
    assert body["guidance"] == {"kind": "classifier_free", "scale": 2}
    expect(run.locator("figure img")).to_have_count(4)
    expect(run.locator(".tile")).to_have_count(4)
    assert all_loaded(run.locator("img"))
    for tile in run.locator(".tile").all():
        assert tile.locator("img").get_attribute("alt") == tile.locator(".tile-caption").inner_text()
        assert re.fullmatch(r"-?\d\.\d{3}", tile.locator(".score").inner_text())
        assert tile.locator(".licence").inner_text() in ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0")
    with page.expect_download() as saved:
        run.locator("figcaption a").first.click()
    record = Image.open(saved.value.path()).text["remembrandt"]  # type: ignore[attr-defined]
    assert [str(own["id"]) for own in json.loads(record)["neighbors"]] == neighbors(run)


def test_a_neighbour_that_is_switched_off_is_gone(page: Page) -> None:
    _, run = paint(page, "a red circle")
    first, *others = neighbors(run)
    seed = page.input_value("#seed")
    toggle = run.locator(".tile-picture").first
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "false")
    body, newer = paint(page, button=".run .again")
    assert body["without"] == [int(first)]
    assert str(body["seed"]) == seed
    assert first not in neighbors(newer)
    assert set(others) < set(neighbors(newer))
    page.locator("#left-out-chips button").click()
    body, newest = paint(page)
    assert "without" not in body
    assert neighbors(newest)[0] == first


def test_a_pinned_neighbour_is_painted_after(page: Page) -> None:
    _, run = paint(page, "a red circle")
    second = neighbors(run)[1]
    run.locator(".tile").nth(1).get_by_role("button", name="Pin").click()
    body, newer = paint(page, button=".run .again")
    assert body["exemplars"] == [{"row": int(second)}]
    assert neighbors(newer) == [second]


def test_a_database_is_swapped_with_the_seed_held(page: Page) -> None:
    before, run = paint(page, "a blue star")
    seed, first = page.input_value("#seed"), neighbors(run)
    assert "seed" not in before and seed
    page.select_option("#database", "outlines")
    expect(page.locator("#database-hint")).to_contain_text(seed)
    after, newer = paint(page)
    assert (after["database"], str(after["seed"])) == ("outlines", seed)
    assert neighbors(newer) != first
    expect(newer.locator(".licence").first).to_have_text("MIT")
    assert page.locator(".run").count() == 2


def test_a_file_that_is_dropped_in_is_painted_after(page: Page) -> None:
    data = io.BytesIO()
    draw("moon", "purple", "filled", 700).save(data, "PNG")
    drop = """([bytes, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "purple-moon.png", { type }));
        const init = { dataTransfer: transfer, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent("dragover", init));
        document.body.dispatchEvent(new DragEvent("drop", init));
    }"""
    page.evaluate(drop, [list(data.getvalue()), "image/png"])
    expect(page.locator("#chips .chip")).to_have_count(1)
    body, run = paint(page)
    (exemplar,) = body["exemplars"]
    assert exemplar["image"].startswith("data:image/png;base64,")
    assert exemplar["caption"] == "purple moon"
    expect(run.locator(".tile img")).to_have_attribute("alt", "purple moon")
    page.get_by_role("button", name="Take away purple-moon.png").click()
    page.evaluate(drop, [[1, 2, 3], "image/png"])
    expect(page.locator("#exemplars-error")).to_contain_text("no picture")


def test_exemplars_are_pasted_chosen_and_dragged_too(page: Page) -> None:
    data = io.BytesIO()
    draw("star", "blue", "filled").save(data, "PNG")
    page.set_input_files(
        "#exemplar-files", {"name": "blue-star.png", "mimeType": "image/png", "buffer": data.getvalue()}
    )
    expect(page.locator("#chips .chip")).to_have_count(1)
    page.evaluate(
        """(bytes) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        list(data.getvalue()),
    )
    expect(page.locator("#chips .chip")).to_have_count(2)
    page.select_option("#strategy", "neighbors")
    expect(page.locator("#exemplars-hint")).to_contain_text("Not used by the strategy")
    body, run = paint(page, "a red circle")
    assert "exemplars" not in body
    row = neighbors(run)[0]
    page.drag_and_drop(".run .tile img", "#exemplars")
    expect(page.locator("#chips .chip")).to_have_count(3)
    body, newer = paint(page)
    assert [own.get("row") for own in body["exemplars"]] == [None, None, int(row)]
    expect(newer.locator(".tile")).to_have_count(3)


def test_pictures_are_foreseen_and_can_be_given_up(page: Page) -> None:
    page.fill("#prompt", "a red circle")
    page.locator("#steps").evaluate("(slider) => { slider.value = 250; }")
    page.fill("#count", "16")
    page.click("#go")
    expect(page.locator(".frame.foreseen")).to_have_count(16)
    assert page.locator("#progress").evaluate("(bar) => bar.value") > 0
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator(".run")).to_have_count(0)
    expect(page.locator("#go")).to_be_visible()


def test_errors_are_said_in_words_beside_the_button(page: Page, service: Service) -> None:
    page.fill("#prompt", "a cat")
    page.select_option("#strategy", "image")
    page.click("#go")
    expect(page.locator("#error")).to_have_text("Strategy 'image' needs one exemplar with an image.")
    page.evaluate(f"sessionStorage.setItem('remembrandt-key', {json.dumps(service.spent_key)})")
    page.select_option("#strategy", "")
    page.click("#go")
    expect(page.locator("#error")).to_have_text(
        re.compile(r"^0 images a day are allowed, .*Try again in \d+ (seconds?|minutes?|hours?)\.$")
    )
    expect(page.locator(".run")).to_have_count(0)


def test_the_key_leaves_the_address_and_a_wrong_one_is_asked_for_again(blank: Page, service: Service) -> None:
    blank.goto(f"{service.url}#key=wrong")
    expect(blank.locator("#key-error")).to_have_text("This key is not valid: enter another one.")
    assert blank.url == service.url
    blank.fill("#key", service.key)
    blank.press("#key", "Enter")
    expect(blank.locator("#main")).to_be_visible()
    expect(blank.locator("#key-form")).to_be_hidden()
    blank.reload()
    expect(blank.locator("#main")).to_be_visible()
    blank.click("#forget-key")
    expect(blank.locator("#key-form")).to_be_visible()


def test_the_keyboard_is_enough(page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"the focus on {selector} is not seen"
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#prompt")
    page.keyboard.type("a green square")
    with page.expect_request("**/v1/images/generations") as sent:
        page.keyboard.press("Enter")
    body, run = done(page, sent.value)
    assert body["prompt"] == "a green square"
    tab_to(".run .tile-picture")
    page.keyboard.press("Space")
    expect(run.locator(".tile-picture").first).to_have_attribute("aria-pressed", "false")
    page.locator("#tab-pictures").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-search")).to_be_visible()


def test_every_control_has_a_name(page: Page) -> None:
    paint(page, "a red circle")
    for tab in ("pictures", "search", "databases"):
        page.click(f"#tab-{tab}")
        nameless = page.locator("input, select, textarea, button, a, img, progress").evaluate_all(
            """all => all.filter((one) => one.checkVisibility() && !one.closest(".chip") && !(
                one.getAttribute("aria-label") || one.alt || one.textContent.trim() && one.matches("button, a")
                || one.labels?.length)).map((one) => one.outerHTML)"""
        )
        assert nameless == []


def test_a_search_finds_rows_to_pin(page: Page) -> None:
    page.click("#tab-search")
    page.select_option("#search-by", "bm25")
    page.fill("#search-text", "yellow arrow")
    page.press("#search-text", "Enter")
    found = page.locator("#found .tile")
    expect(found).to_have_count(24)
    expect(found.first.locator(".tile-caption")).to_contain_text("yellow arrow")
    found.first.locator(".tile-picture").click()
    expect(page.locator("#chips .chip-text")).to_contain_text(["yellow arrow"])
    body, run = paint(page)
    assert [str(own["row"]) for own in body["exemplars"]] == neighbors(run)


def test_own_pictures_become_a_database_and_markup_stays_text(page: Page) -> None:
    files = []
    for shape, name in (("circle", f"{MARKUP}.png"), ("square", "red-square.png"), ("star", "red-star.png")):
        data = io.BytesIO()
        draw(shape, "red", "filled").save(data, "PNG")
        files.append({"name": name, "mimeType": "image/png", "buffer": data.getvalue()})
    page.click("#tab-databases")
    page.fill("#upload-name", "mine")
    page.set_input_files("#upload-files", files)
    page.locator("#upload button").click()
    expect(page.locator("#upload-status")).to_contain_text("Building mine", timeout=60_000)
    expect(page.locator("#upload-status")).to_have_text("mine is ready: 3 rows.", timeout=120_000)
    page.get_by_role("button", name="Paint from mine").click()
    body, run = paint(page, MARKUP)
    assert body["database"] != "drawings"
    assert body["num_neighbors"] == 3, "more rows than it has were asked for"
    expect(run.locator("h2")).to_have_text(MARKUP)
    assert MARKUP in run.locator(".tile-caption").all_inner_texts()
    expect(run.locator('img[src="x"]')).to_have_count(0)
    page.click("#tab-databases")
    expect(page.get_by_role("button", name="Delete drawings")).to_have_count(0)
    delete = page.get_by_role("button", name="Delete mine")
    page.once("dialog", lambda dialog: dialog.dismiss())
    delete.click()
    expect(delete).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    delete.click()
    expect(page.locator("#databases-status")).to_have_text("mine is deleted.")
    expect(delete).to_have_count(0)
    assert "mine" not in page.locator("#database").inner_text()
    body, _ = paint(page, "a red circle")
    assert body["database"] == "drawings"


def test_a_strategy_shows_the_settings_that_it_alone_has(page: Page) -> None:
    top_m, pool = page.locator("#top-m"), page.locator("#pool-size")
    expect(top_m).to_be_visible()
    expect(pool).to_be_hidden()
    top_m.select_option("0.01")
    body, _ = paint(page)
    assert (body["top_m"], body["solver"]) == (0.01, "dpm_solver++") and "strategy" not in body
    page.fill("#prompt", "a red circle")
    expect(top_m).to_be_hidden()
    page.select_option("#strategy", "class_pool")
    page.select_option("#solver", "ddim")
    pool.fill("8")
    body, run = paint(page)
    assert (body["pool_size"], body["solver"]) == (8, "ddim") and "top_m" not in body
    expect(run.locator(".facts").first).to_contain_text("pool of 8")
    pool.fill("30")
    body, _ = paint(page, button=".run .again")
    assert body["pool_size"] == 8, "painting again is with the settings of that run"


def test_re_imagen_has_its_own_guidance(page: Page) -> None:
    page.select_option("#model", "tiny-cascade")
    page.get_by_role("button", name="entities").click()
    body, run = paint(page, "a red circle")
    assert body["guidance"] == {"kind": "interleaved", "text_weight": 30, "neighbor_weight": 30, "eta": 0.5}
    expect(run.locator("figure img")).to_have_count(4)
    page.select_option("#guidance-kind", "plain")
    body, _ = paint(page)
    assert body["guidance"] == {"kind": "plain"}


@pytest.mark.parametrize("settings", [{"viewport": {"width": 360, "height": 740}, "is_mobile": True}])
def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    paint(page, "a red circle with a rather long name " + "x" * 200)
    page.locator("#settings").evaluate("(details) => { details.open = true; }")
    for tab in ("pictures", "search", "databases"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("settings", [{"color_scheme": "dark"}])
def test_text_stands_out_in_light_and_in_the_dark(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    paint(page, "a red circle")
    # Colours as they are drawn, over the nearest background that is not transparent.
    pairs = page.locator(
        "body, .hint, .facts, .score, .tile-caption, #go, .tabs button, figcaption button"
    ).evaluate_all(
        """all => all.filter((one) => one.checkVisibility()).map((one) => {
            const back = (node) => getComputedStyle(node).backgroundColor;
            let behind = one;
            while (back(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(one).color, back(behind)];
        })"""
    )
    assert len(pairs) > 10
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    is_dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1
    assert is_dark == (scheme == "dark")


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two CSS colours."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert found, colour
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in found.groups())
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_loads_nothing_from_elsewhere(service: Service) -> None:
    for path in ("", "app.js", "style.css"):
        answer = httpx.get(service.url + path)
        policy = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'self'", "img-src 'self' data: blob:", "frame-ancestors 'none'"} <= set(policy)
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert "content-security-policy" not in httpx.get(service.url + "healthz").headers


def test_no_script_writes_markup() -> None:
    for script in GALLERY.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text()), (
            script
        )
