"""The page in a real browser: what a visitor relies on, with the keyboard, on a phone and in the dark."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

CONTRACT = {
    "name": "small",
    "target": "total",
    "task": "regression",
    "columns": [
        {"name": "weight", "type": "float", "unit": "kg", "nullable": False, "description": "on the scales"},
        {"name": "stops", "type": "int", "nullable": False},
        {"name": "way", "type": "text"},
        {"name": "city", "type": "text"},
        {"name": "fragile", "type": "bool", "nullable": False},
        {"name": "sent", "type": "timestamp", "nullable": False},
        {"name": "due", "type": "date"},
        {"name": "sender", "type": "text", "personal": True},
        {"name": "remark", "type": "text"},
        {"name": "total", "type": "float", "unit": "EUR"},
    ],
    "features": [
        {"kind": "numeric", "column": "weight"},
        {"kind": "numeric", "column": "stops"},
        {"kind": "category", "column": "way"},
        {"kind": "category", "column": "city"},
        {"kind": "category", "column": "fragile"},
        {"kind": "time_parts", "column": "sent"},
        {"kind": "time_parts", "column": "due"},
        {"kind": "category", "column": "sender"},
    ],
    "rules": [{"kind": "one_of", "column": "way", "values": ["road", "rail", "air"]}],
}
SHARES = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")


def number(*quantiles: float) -> dict:
    """The profile of a column of numbers."""
    found = dict(zip(SHARES, quantiles, strict=True))
    return {"kind": "number", "min": quantiles[0] - 1, "max": quantiles[-1] + 1, "quantiles": found}


PROFILE = {
    "rows": 4_000,
    "columns": {
        "weight": number(1, 2, 5, 10, 20, 50, 90),
        "stops": number(1, 1, 2, 3, 5, 8, 12),
        "way": {"kind": "category", "categories": {"rail": 3_000, "road": 1_000}},
        "city": {"kind": "category", "categories": {f"city {i:02}": 100 - i for i in range(40)}},
        "fragile": {"kind": "category", "categories": {"false": 900, "true": 100}},
        "sent": {"kind": "timestamp", "min": "2023-03-01T00:00:00", "max": "2023-03-31T23:00:00",
                 "quantiles": {"0.5": "2023-03-16T12:30:00"}},
        "due": {"kind": "timestamp", "min": "2023-03-02T00:00:00", "max": "2023-04-30T00:00:00",
                "quantiles": {"0.5": "2023-03-20T00:00:00"}},
        "sender": {"kind": "category", "categories": {"Ann Lee": 3}},
        "total": number(3, 4, 8, 13, 25, 58, 100),
    },
}  # fmt: skip
FACTS = {
    "contract": CONTRACT,
    "profile": PROFILE,
    "metrics": {"test": {"rmse": 1.25, "mae": 0.8}, "baselines": {"constant": {"rmse": 9.5}, "linear": {"rmse": 2.5}}},
    "lineage": {"snapshots": {"train": "parcels@5132"}, "runs": {"train": "a41f"}, "code": "0.1.0+3f2a", "seed": 0},
    "page": {
        "metric": "rmse",
        "trained_at": "2023-04-02T06:10:00+00:00",
        "slice_column": "way",
        "slices": [{"slice": "rail", "rows": 600, "error": 0.9}, {"slice": "road", "rows": 200, "error": 2.0}],
        "importance": [
            {"feature": "numeric(stops)", "importance": 2.0},
            {"feature": "numeric(weight)", "importance": 8.0},
        ],
    },
    "version": "small@1",
    "drift": {
        "at": "2023-05-01T06:00:00+00:00", "verdict": "look", "url": "report.html",
        "columns": [{"column": "weight", "score": 0.3}, {"column": "stops", "score": 0.1}],
    },
}  # fmt: skip

# Every text that can be seen, with its contrast: (ratio, size in px, weight, text).
CONTRAST = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    const c = rgb(getComputedStyle(e).backgroundColor);
    return c[3] === 255 ? c : behind(e.parentElement);
  };
  const found = [];
  const look = (element, text) => {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!text.trim() || !box.width || element.closest("script, noscript, .aside")) return;
    const [a, b] = [light(rgb(style.color)), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), text.trim().slice(0, 60)]);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) look(walk.currentNode.parentElement, walk.currentNode.data);
  for (const e of document.querySelectorAll("input:not([type=range]), select")) look(e, e.value || "-");
  return found;
}"""

# Of what has the focus; the button for the calendar within a field has a ring of the browser's own.
OUTLINE = """() => {
  const e = document.activeElement;
  return e.matches(":focus") ? getComputedStyle(e).outlineStyle : "solid";
}"""


def test_the_form_asks_for_what_the_model_reads(small: Callable, visit: Callable) -> None:
    """One labelled control of the right kind for each column; a usual row is in it; no other column is asked for."""
    tab = (seen := visit(small(FACTS).url)).tab
    kinds = "e => e.type || e.localName"
    found = {
        label: (
            tab.get_by_label(re.compile(f"^{label}\\b")).evaluate(kinds),
            tab.get_by_label(label).first.input_value(),
        )
        for label in ("weight", "stops", "way", "city", "sent", "due", "sender")
    }
    assert found == {
        "weight": ("number", "10.0"),
        "stops": ("number", "3"),
        "way": ("select-one", "rail"),
        "city": ("text", "city 00"),
        "sent": ("datetime-local", "2023-03-16T12:30"),
        "due": ("date", "2023-03-20"),
        "sender": ("text", ""),
    }
    assert tab.get_by_label("fragile").is_checked() is False
    assert tab.get_by_label("way").locator("option").all_inner_texts() == ["(empty)", "road", "rail", "air"]
    assert tab.locator("form [data-column]").count() == 8
    assert "Ann Lee" not in tab.content()
    weight = tab.get_by_label("weight")
    told = tab.locator(f"#{weight.get_attribute('aria-describedby').split()[0]}").inner_text()
    assert told == "on the scales\nTraining range: 0.0 to 91.0"
    assert tab.get_by_label("weight kg").count() == 1
    assert seen.answer() == "13.0EUR"


def test_the_prediction_follows_what_is_typed(small: Callable, visit: Callable) -> None:
    """Without a button; values go out in their types; an empty field that may be empty goes out as null."""
    server = small(FACTS)
    seen = visit(server.url)
    assert seen.answer().startswith("13.0")
    assert "Higher than" in seen.tab.locator("#say").inner_text()
    for label, value in {"weight": "20.5", "stops": "4", "city": "", "sent": "2023-03-05T08:15"}.items():
        seen.tab.get_by_label(label).fill(value)
    seen.tab.get_by_label("fragile").check()
    seen.tab.get_by_label("way").select_option("")
    assert seen.answer().startswith("25.5")
    assert server.rows[-1] == {
        "weight": 20.5, "stops": 4, "way": None, "city": None, "fragile": True,
        "sent": "2023-03-05T08:15:00", "due": "2023-03-20", "sender": None,
    }  # fmt: skip
    asked = len(server.rows)
    seen.tab.get_by_label("stops").press_sequentially("0000", delay=10)
    assert seen.answer().startswith("40,021.5")
    assert len(server.rows) - asked <= 3, "a request for each key"
    seen.tab.get_by_role("button", name="Reset to typical values").click()
    expect(seen.tab.locator("#value")).to_have_text("13.0EUR")


def test_a_slider_moves_its_number(small: Callable, visit: Callable) -> None:
    """By hand; the number moves the slider too."""
    seen = visit(small(FACTS).url)
    seen.answer()
    slider = seen.tab.locator("input[type=range]").first
    box = slider.bounding_box()
    seen.tab.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    weight = float(seen.tab.get_by_label("weight").input_value())
    assert 60 < weight < 75
    assert seen.answer().startswith(f"{weight + 3:.1f}")
    seen.tab.get_by_label("weight").fill("33")
    assert slider.input_value() == "33"


def test_a_refused_value_is_told_at_its_field(small: Callable, visit: Callable) -> None:
    """And only there, until it is right."""
    seen = visit(small(FACTS).url)
    seen.answer()
    weight, note = seen.tab.get_by_label("weight"), seen.tab.locator("#f0-note")
    weight.fill("")
    seen.tab.wait_for_selector("#f0-note:visible")
    assert note.inner_text() == "Expected a number."
    assert weight.get_attribute("aria-invalid") == "true"
    assert note.get_attribute("id") in weight.get_attribute("aria-describedby").split()
    assert seen.tab.locator(".note:visible").count() == 1
    assert seen.tab.locator("#say").inner_text() == "One field has an invalid value."
    seen.tab.get_by_label("stops").fill("1.5")
    seen.tab.wait_for_selector("#f1-note:visible")
    assert seen.tab.locator("#f1-note").inner_text() == "Expected an integer, got 1.5."
    assert seen.tab.locator("#say").inner_text() == "2 fields have invalid values."
    weight.fill("1")
    seen.tab.get_by_label("stops").fill("2")
    assert seen.answer().startswith("3.0")
    assert seen.tab.locator(".note:visible").count() == 0
    assert weight.get_attribute("aria-invalid") == "false"


def test_a_value_that_training_never_saw_is_answered_and_flagged(small: Callable, visit: Callable) -> None:
    """Gently: the field is not in error."""
    seen = visit(small(FACTS).url)
    seen.answer()
    seen.tab.get_by_label("weight").fill("500")
    assert seen.answer().startswith("503.0")
    assert seen.tab.locator("#f0-note").inner_text() == "Outside the training range of 0.0 to 91.0."
    assert seen.tab.get_by_label("weight").get_attribute("aria-invalid") == "false"
    assert seen.tab.locator("#say").inner_text() == "Higher than nearly all of the training rows."


def test_the_keyboard_is_enough(small: Callable, visit: Callable) -> None:
    """Tab reaches each field in order, shows where it is, and every change is read out."""
    seen = visit(small(FACTS).url)
    seen.answer()
    reached = []
    for _ in range(30):
        seen.tab.keyboard.press("Tab")
        reached.append(seen.tab.evaluate("document.activeElement.dataset.column || document.activeElement.innerText"))
        shown = seen.tab.evaluate(OUTLINE)
        assert shown == "solid", f"one does not see that {reached[-1]} has the focus"
        if reached[-1] == "weight":
            seen.tab.keyboard.press("Control+a")
            seen.tab.keyboard.type("7")
        if reached[-1] == "Health":
            break
    columns = list(dict.fromkeys(name for name in reached if name in {c["name"] for c in CONTRACT["columns"]}))
    assert columns == ["weight", "stops", "way", "city", "fragile", "sent", "due", "sender"]
    assert {"Skip to the form", "Reset to typical values", "As an HTTP request", "Drift report"} <= set(reached)
    assert seen.answer().startswith("10.0")
    live = seen.tab.get_by_role("status").first
    assert live.get_attribute("aria-live") == "polite"
    assert "10.0" in live.inner_text()


def test_what_the_model_knows(small: Callable, visit: Callable) -> None:
    """Version, data and date; errors, slices, importance and drift as tables with bars of the right length."""
    tab = visit(small(FACTS).url).tab
    text = tab.locator("main").inner_text()
    for fact in ("small@1", "parcels@5132", "2 April 2023, 06:10 UTC", "0.1.0+3f2a", "4,000", "Have a look"):
        assert fact in text
    errors = tab.get_by_role("table", name="Test error")
    assert errors.locator("tbody th").all_inner_texts() == ["this model", "linear", "constant"]
    widths = [bar.bounding_box()["width"] for bar in errors.locator("rect").all()]
    assert [width / widths[-1] for width in widths] == pytest.approx([1.25 / 9.5, 2.5 / 9.5, 1], abs=0.02)
    slices = tab.get_by_role("table", name="Error by slice")
    assert slices.get_by_role("row", name="road").get_by_role("cell").all_inner_texts() == ["", "2.00", "200"]
    weights = tab.get_by_role("table", name="Feature importance").locator("tbody th").all_inner_texts()
    assert [name.split("\n")[0] for name in weights] == ["weight", "stops"]
    assert tab.get_by_role("link", name="Drift report").get_attribute("href") == "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(small: Callable, visit: Callable, scheme: str) -> None:
    """A contrast of 4.5 to 1 at least (WCAG AA), warnings and refusals included."""
    seen = visit(small(FACTS).url, scheme=scheme)
    seen.answer()
    ground = seen.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 384) == (scheme == "light")
    seen.tab.get_by_text("As an HTTP request").click()
    seen.tab.get_by_label("weight").fill("500")
    seen.answer()
    pale = [found for found in seen.tab.evaluate(CONTRAST) if found[0] < 4.5]
    seen.tab.get_by_label("weight").fill("")
    seen.tab.wait_for_selector(".note.bad:visible")
    looked = seen.tab.evaluate(CONTRAST)
    assert len(looked) > 60
    assert not pale + [found for found in looked if found[0] < 4.5]


def test_a_phone_is_wide_enough(small: Callable, visit: Callable) -> None:
    """At 375 px nothing is cut off, fingers hit what they aim at, and the prediction stays in sight."""
    seen = visit(small(FACTS).url, width=375, touch=True)
    seen.answer()
    assert seen.tab.evaluate("document.documentElement.scrollWidth") == 375
    wide = "e => [...e.querySelectorAll('*')].filter(x => x.getBoundingClientRect().right > 376).map(x => x.outerHTML)"
    assert seen.tab.locator("main").evaluate(wide) == []
    for control in seen.tab.locator("#row :is(input:not([type=range], [type=checkbox]), select, button):visible").all():
        assert control.bounding_box()["height"] >= 40
    for label in ("weight", "sender"):
        seen.tab.get_by_label(label).focus()
        top, field = seen.tab.locator("#answer").bounding_box(), seen.tab.get_by_label(label).bounding_box()
        assert top["y"] >= 0
        assert top["y"] + top["height"] <= field["y"] < 667


def test_nothing_comes_from_elsewhere_and_the_policy_holds(small: Callable, visit: Callable) -> None:
    """No complaint of the browser under a policy that forbids all but the page's own style and script."""
    seen = visit((server := small(FACTS)).url)
    seen.answer()
    seen.tab.get_by_text("As an HTTP request").click()
    assert seen.complaints == []
    assert {re.sub("predict$", "", url) for url in seen.asked if not url.startswith("data:")} == {server.url}
    seen.tab.evaluate("() => document.body.append(Object.assign(document.createElement('script'), {text: 'ran = 1'}))")
    assert seen.tab.evaluate("window.ran") is None
    assert "Content Security Policy" in seen.complaints[0]


def test_what_a_contract_holds_stays_text(small: Callable, visit: Callable) -> None:
    """Also where the service's answers repeat it, and where a name is that of something of the browser's."""
    evil = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>\"'`${window.ran=1}"
    names = {"weight": evil, "stops": "submit", "way": "elements", "city": "__proto__", "total": f"total {evil}"}
    columns = [
        {**c, "name": names.get(c["name"], c["name"]), "unit": evil, "description": evil} for c in CONTRACT["columns"]
    ]
    features = [{**f, "column": names.get(f["column"], f["column"])} for f in CONTRACT["features"]]
    drift = {"verdict": evil, "url": "java\nscript:window.ran=1", "columns": [{"column": evil, "score": 1}]}
    contract = {**CONTRACT, "columns": columns, "features": features, "rules": [], "target": names["total"]}
    profile = {"rows": 1, "columns": {names.get(n, n): c for n, c in PROFILE["columns"].items()}}
    profile["columns"]["fragile"]["categories"][evil] = 1
    seen = visit(
        (server := small({**FACTS, "contract": contract, "profile": profile, "drift": drift, "version": evil})).url
    )
    assert seen.answer().startswith("13.0")
    assert server.rows[-1][evil] == 10
    assert server.rows[-1]["submit"] == 3
    assert "__proto__" in server.rows[-1]
    seen.tab.locator("#f0").fill("")
    seen.tab.wait_for_selector("#f0-note:visible")
    assert evil in seen.tab.locator("h1").inner_text()
    assert seen.tab.locator("img").count() == 0
    assert seen.tab.locator("a[href*=script]").count() == 0
    assert seen.tab.evaluate("window.ran") is None
    assert [c for c in seen.complaints if "422" not in c] == []


def test_classes_come_with_their_chances(small: Callable, visit: Callable) -> None:
    """The likeliest first and large."""
    contract = {**CONTRACT, "task": "binary", "target": "remark"}
    seen = visit(small({**FACTS, "contract": contract, "metrics": {}}, classes=["on time", "late"]).url)
    assert seen.answer().startswith("on time")
    assert seen.tab.locator("#chances li").all_inner_texts() == ["on time\n75 %", "late\n25 %"]
    first, second = (bar.bounding_box()["width"] for bar in seen.tab.locator("#chances b").all())
    assert first == pytest.approx(3 * second, rel=0.02)


def test_a_key_is_asked_for_and_sent_on(small: Callable, visit: Callable) -> None:
    """Only where the service wants one; it is neither in the address nor in the request that one may copy."""
    seen = visit((server := small(FACTS, key="open sesame")).url)
    seen.tab.get_by_label("API key").wait_for()
    assert seen.tab.locator("#say").inner_text() == "The service requires a key."
    seen.tab.get_by_label("API key").fill("open")
    seen.says("The service does not accept this key.")
    seen.tab.get_by_label("API key").fill("open sesame")
    assert seen.answer().startswith("13.0")
    seen.tab.get_by_text("As an HTTP request").click()
    told = seen.tab.locator("#curl").inner_text()
    assert "$KEY" in told
    assert "sesame" not in told
    assert not any("sesame" in url for url in seen.asked)
    assert server.rows


@pytest.mark.parametrize("end", ["", "/", "?a=b#c"])
def test_it_works_behind_a_prefix(small: Callable, visit: Callable, end: str) -> None:
    """With a slash at the end or without."""
    server = small(FACTS, prefix="/models/taxi/")
    server.facts = FACTS
    address = server.url.rstrip("/") + end
    seen = visit(address.partition("?")[0])
    assert seen.answer().startswith("13.0")
    assert seen.asked[-1] == f"{server.url}predict"


def test_a_service_in_trouble_is_told_and_asked_again(small: Callable, visit: Callable) -> None:
    """Busy, broken, gone and back."""
    server = small(FACTS)
    seen = visit(server.url)
    seen.answer()
    server.status = 503
    seen.tab.get_by_label("stops").fill("5")
    seen.says(re.compile("busy"))
    server.status = 200
    expect(seen.tab.locator("#value")).to_have_text("15.0EUR")
    server.status = 500
    seen.tab.get_by_label("stops").fill("6")
    seen.says("told to fail")
    seen.tab.context.set_offline(True)
    seen.tab.get_by_label("stops").fill("7")
    seen.says(re.compile("does not answer"))
    server.status = 200
    seen.tab.context.set_offline(False)
    expect(seen.tab.locator("#value")).to_have_text("17.0EUR")


def test_an_answer_to_an_earlier_row_is_not_shown(small: Callable, visit: Callable) -> None:
    """Not even while the page still waits for the next key."""
    server = small(FACTS)
    seen = visit(server.url)
    seen.answer()
    server.late = 0.3
    seen.tab.get_by_label("stops").fill("1")
    seen.tab.wait_for_timeout(350)  # asked, and about to be answered
    seen.tab.get_by_label("stops").fill("2")
    assert seen.answer().startswith("12.0")
