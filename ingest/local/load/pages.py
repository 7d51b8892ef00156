"""Generates the pages of a fictional outdoor shop, which sessions visit, in the form that rrweb records.

A `Page` is a DOM of a few hundred to two thousand nodes with a fixed layout, so that the coordinates of clickable
elements are known. The large parts of a page (the full snapshot, re-renders of the live panel, updates of bars and
figures, idle mouse paths) are serialized and compressed once, and shared by every session that visits the page. A
site is a set of pages generated from a seed. Every part refers only to nodes that exist at that moment, so a
recording composed of these parts can be played.

The data structures are rrweb's: `serializedNodeWithId` for nodes (type 0 document, 1 doctype, 2 element, 3 text),
`mutationData` for re-renders.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import msgspec

from ingest.local.load.deflate import Part

Node = dict[str, Any]
encode = msgspec.json.encode

ORIGIN = "https://shop.fernhill.example"
WIDTH, HEIGHT = 1280, 800
HEADER_PIXELS, SIDE_PIXELS, PANEL_PIXELS = 56, 208, 340
CARD_WIDTH, CARD_HEIGHT, CARD_COLUMNS = 256, 232, 4
PANELS = 6  # number of different renderings that a page's live panel cycles through
TICKS = 4
MOUSE_MOVEMENTS = 8

WORDS_TEXT = """
alpine anchor anorak basin beacon birch bivouac boulder bracken bridle brook buckle burrow cairn camp canvas
canyon cedar chalk clasp cliff clover compass copper cotton cove cradle crag creek crest dale dawn delta
drift dune dusk eddy ember falcon fern fjord flint fog ford forest fox frost gale gorge granite grove gully
harbour hazel heath heron hollow horizon island ivy juniper kayak kettle lantern larch ledge lichen linen
loch lodge maple marsh meadow merino mesa mist moor moss mountain oak orchard otter paddle path peak pebble
pine plateau pond poplar quartz quill rapid raven reed ridge river robin rope rowan saddle sail sand scree
shale shelter shore slate sleet snow spruce stone storm strap stream summit thaw thicket thistle tide timber
torch trail tundra valley velvet wander waterfall wharf willow wind wool yarrow zenith
"""
WORDS = tuple(WORDS_TEXT.split())
KINDS = ("jacket", "tent", "boots", "rucksack", "stove", "lamp", "bottle", "mat", "sleeping bag", "pole", "glove")
ROUTES = (
    ("/", "Fernhill: kit for long walks"),
    ("/catalogue/tents", "Tents and tarps"),
    ("/catalogue/boots", "Boots"),
    ("/product/{n}", "One product"),
    ("/basket", "Your basket"),
    ("/checkout/address", "Checkout: address"),
    ("/checkout/payment", "Checkout: payment"),
    ("/account/orders", "Your orders"),
    ("/journal/{n}", "The journal"),
    ("/search", "Search"),
    ("/stores/map", "Our stores"),
    ("/ops/dashboard", "Live orders"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A clickable element: its node as the SDK's breadcrumb describes it, and its position."""

    id: int
    tag: str
    text: str
    attributes: dict[str, str]
    selector: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page. `panels[i]` is the mutation that replaces rendering i of the live panel with rendering i + 1."""

    url: str
    title: str
    snapshot: Part
    panels: tuple[Part, ...]
    ticks: tuple[Part, ...]
    wanders: tuple[Part, ...]
    targets: tuple[Target, ...]
    input_id: int
    canvas_id: int
    main_id: int
    nodes: int


def make_site(
    seed: int, pages: int = 24, cards: tuple[int, int] = (24, 150), rules: tuple[int, ...] = (260, 420, 620)
) -> tuple[Page, ...]:
    """Generates `pages` pages, each with a number of cards in the range `cards` and a style sheet of `rules`
    rules.

    Equal arguments produce equal sites.
    """
    rng = random.Random(seed)
    styles = [_stylesheet(rng, number) for number in rules]
    icons = [_icon_path(rng) for _ in range(30)]
    pages_built = []
    for number in range(pages):
        route, title = ROUTES[number % len(ROUTES)]
        url = ORIGIN + route.format(n=rng.randrange(1000, 9999))
        size = round(cards[0] * (cards[1] / cards[0]) ** rng.random())
        pages_built.append(_Builder(rng, icons, url, title).page(size, rng.choice(styles)))
    return tuple(pages_built)


class _Builder:
    """Builds one page. Ids are assigned in document order, as in rrweb."""

    def __init__(self, rng: random.Random, icons: list[str], url: str, title: str) -> None:
        self.rng = rng
        self.icons = icons
        self.url = url
        self.title = title
        self.next_id = 1
        self.targets: list[Target] = []

    def page(self, cards: int, style: str) -> Page:
        document = self.node(0, childNodes=[])
        doctype = self.node(1, name="html", publicId="", systemId="")
        html = self.element("html", {"lang": "en", "class": "theme-light no-touch"})
        document["childNodes"] += [doctype, html]
        html["childNodes"].append(self.head(style))
        body = self.element("body", {"class": "app-body"})
        html["childNodes"].append(body)
        app = self.element("div", {"id": "root", "class": "app", "data-reactroot": ""})
        body["childNodes"].append(app)
        search, canvas, header = self.header()
        app["childNodes"] += [header, self.side()]
        main = self.element("main", {"class": "main", "role": "main"})
        app["childNodes"].append(main)
        holder = self.element("section", {"class": "live", "aria-live": "polite", "aria-label": "Live orders"})
        main["childNodes"].append(holder)
        grid = self.element("div", {"class": "grid"})
        main["childNodes"].append(grid)
        bars: list[int] = []
        figures: list[int] = []
        for number in range(cards):
            grid["childNodes"].append(self.card(number, bars, figures))
        renderings = [self.panel(rows=self.rng.randint(9, 14)) for _ in range(PANELS)]
        holder["childNodes"].append(renderings[0])
        snapshot = Part(encode({"node": document, "initialOffset": {"left": 0, "top": 0}}))
        panels = tuple(
            Part(encode(_replacement(holder["id"], old, new)))
            for old, new in zip(renderings, renderings[1:] + renderings[:1], strict=True)
        )
        return Page(
            url=self.url,
            title=self.title,
            snapshot=snapshot,
            panels=panels,
            ticks=tuple(Part(encode(self.tick(bars, figures))) for _ in range(TICKS)),
            wanders=tuple(Part(encode(self.mouse_movement(main["id"]))) for _ in range(MOUSE_MOVEMENTS)),
            targets=tuple(self.targets),
            input_id=search,
            canvas_id=canvas,
            main_id=main["id"],
            nodes=self.next_id - 1,
        )

    # Nodes

    def node(self, kind: int, **fields: Any) -> Node:
        self.next_id += 1
        return {"type": kind, **fields, "id": self.next_id - 1}

    def element(self, tag: str, attributes: dict[str, Any], text: str = "", **fields: Any) -> Node:
        element = self.node(2, tagName=tag, attributes=attributes, childNodes=[], **fields)
        if text:
            element["childNodes"].append(self.node(3, textContent=text))
        return element

    def icon(self) -> Node:
        """Returns an SVG icon with long attributes, as on real pages."""
        svg = self.element("svg", {"viewBox": "0 0 24 24", "class": "icon", "aria-hidden": "true"}, isSVG=True)
        path = {"d": self.rng.choice(self.icons), "fill": "currentColor"}
        svg["childNodes"].append(self.element("path", path, isSVG=True))
        return svg

    def target(self, node: Node, text: str, selector: str, x: int, y: int) -> None:
        attributes = {
            key: value
            for key, value in node["attributes"].items()
            if key in ("id", "class", "role", "name", "type", "alt", "title", "href", "aria-label")
            or key.startswith("data-")
        }
        self.targets.append(Target(node["id"], node["tagName"], text, attributes, selector, x, y))

    # Parts of the page

    def head(self, style: str) -> Node:
        head = self.element("head", {})
        head["childNodes"] += [
            self.element("meta", {"charset": "utf-8"}),
            self.element("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}),
            self.element("title", {}, self.title),
            self.element("link", {"rel": "stylesheet", "_cssText": style}),
        ]
        return head

    def header(self) -> tuple[int, int, Node]:
        """Returns the ids of the search field and the canvas, and the header node."""
        header = self.element("header", {"class": "top", "role": "banner"})
        logo = self.element("a", {"href": ORIGIN + "/", "class": "logo", "title": "Home"}, "Fernhill")
        self.target(logo, "Fernhill", "header.top > a.logo", 60, 28)
        header["childNodes"].append(logo)
        for number, text in enumerate(("Tents", "Boots", "Journal", "Stores")):
            link = self.element(
                "a", {"href": f"{ORIGIN}/{text.lower()}", "class": "top-link", "role": "link"}, text
            )
            self.target(link, text, f"header.top > a.top-link:nth-child({number + 2})", 208 + number * 90 + 40, 28)
            header["childNodes"].append(link)
        search = self.element(
            "input", {"id": "search", "class": "search", "type": "text", "name": "q", "aria-label": "Search"}
        )
        self.target(search, "", "header.top > input#search", 760, 28)
        canvas = self.element("canvas", {"class": "spark", "width": "160", "height": "40"})
        basket = self.element(
            "button", {"id": "basket", "class": "btn btn-basket", "data-testid": "basket", "title": "Basket"}
        )
        basket["childNodes"] += [self.icon(), self.node(3, textContent="Basket")]
        self.target(basket, "Basket", "header.top > button#basket", 1210, 28)
        header["childNodes"] += [search, canvas, basket]
        return search["id"], canvas["id"], header

    def side(self) -> Node:
        side = self.element("nav", {"class": "side", "aria-label": "Filters"})
        for number in range(14):
            text = self.words(2)
            row = self.element("label", {"class": "filter", "data-sentry-component": "FilterRow"})
            box = self.element("input", {"type": "checkbox", "name": f"filter-{number}", "class": "filter-box"})
            row["childNodes"] += [box, self.icon(), self.element("span", {"class": "filter-text"}, text)]
            self.target(box, "", f"nav.side > label.filter:nth-child({number + 1}) > input", 24, 84 + number * 32)
            side["childNodes"].append(row)
        return side

    def card(self, number: int, bars: list[int], figures: list[int]) -> Node:
        rng = self.rng
        kind, name = rng.choice(KINDS), self.words(2).title()
        sku = f"{rng.randrange(16**6):06x}"
        left = SIDE_PIXELS + number % CARD_COLUMNS * CARD_WIDTH
        top = HEADER_PIXELS + PANEL_PIXELS + number // CARD_COLUMNS * CARD_HEIGHT
        card = self.element(
            "article", {"class": "card shadow-sm rounded", "data-sku": sku, "id": f"card-{number}"}
        )
        shade = f"background:hsl({rng.randrange(360)},{rng.randrange(25, 60)}%,{rng.randrange(45, 75)}%)"
        picture = self.element("div", {"class": "card-picture", "style": shade, "role": "img", "alt": name})
        picture["childNodes"].append(self.icon())
        if number < 12:
            self.target(picture, "", f"article#card-{number} > div.card-picture", left + 60, top + 50)
        price = self.element("span", {"class": "price"}, f"£{rng.randrange(900, 42000) / 100:.2f}")
        figures.append(price["childNodes"][0]["id"])
        stock = self.element("div", {"class": "stock"})
        bar = self.element("div", {"class": "stock-bar", "style": f"width: {rng.randrange(5, 100)}%"})
        bars.append(bar["id"])
        stock["childNodes"].append(bar)
        buy = self.element(
            "button",
            {
                "class": "btn btn-buy px-3 py-2",
                "type": "button",
                "data-testid": f"buy-{sku}",
                "data-sentry-component": "BuyButton",
                "aria-label": f"Add {name} {kind} to the basket",
            },
            "Add to basket",
        )
        if number < 12:
            self.target(buy, "Add to basket", f"article#card-{number} > button.btn.btn-buy", left + 70, top + 205)
        card["childNodes"] += [
            picture,
            self.element("h3", {"class": "card-title truncate"}, f"{name} {kind}"),
            self.element("p", {"class": "card-text text-muted"}, self.sentence()),
            price,
            stock,
            buy,
        ]
        return card

    def panel(self, rows: int) -> Node:
        rng = self.rng
        hue = rng.randrange(360)
        panel = self.element("div", {"class": "panel", "style": f"border-left:6px solid hsl({hue},55%,45%)"})
        panel["childNodes"].append(self.element("h2", {"class": "panel-title"}, f"Live orders: {self.words(3)}"))
        for _ in range(rows):
            row = self.element("div", {"class": "panel-row", "data-key": f"{rng.randrange(16**8):08x}"})
            state = rng.choice(("paid", "packed", "sent", "returned"))
            row["childNodes"] += [
                self.element("span", {"class": "cell cell-order"}, f"#{rng.randrange(10**6):06d}"),
                self.element("span", {"class": "cell cell-name"}, f"{self.words(2).title()} {rng.choice(KINDS)}"),
                self.element("span", {"class": f"cell badge badge-{state}"}, state),
                self.element("span", {"class": "cell cell-sum"}, f"£{rng.randrange(900, 99000) / 100:.2f}"),
            ]
            panel["childNodes"].append(row)
        return panel

    # Changes over time

    def tick(self, bars: list[int], figures: list[int]) -> Node:
        """Changes bars and prices in place, which affects only attributes and text nodes."""
        rng = self.rng
        chosen = rng.sample(range(len(bars)), min(len(bars), 24))
        return {
            "source": 0,
            "texts": [{"id": figures[n], "value": f"£{rng.randrange(900, 42000) / 100:.2f}"} for n in chosen[:12]],
            "attributes": [
                {"id": bars[n], "attributes": {"style": {"width": f"{rng.randrange(5, 100)}%"}}} for n in chosen
            ],
            "removes": [],
            "adds": [],
        }

    def mouse_movement(self, node_id: int) -> Node:
        """Returns half a second of idle mouse movement."""
        rng = self.rng
        x, y = rng.randrange(SIDE_PIXELS, WIDTH), rng.randrange(HEADER_PIXELS, HEIGHT)
        positions = []
        for step in range(10):
            x = min(max(x + rng.randrange(-40, 41), SIDE_PIXELS), WIDTH - 1)
            y = min(max(y + rng.randrange(-30, 31), HEADER_PIXELS), HEIGHT - 1)
            positions.append({"x": x, "y": y, "id": node_id, "timeOffset": 50 * step - 450})
        return {"source": 1, "positions": positions}

    def words(self, count: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=count))

    def sentence(self) -> str:
        text = self.words(self.rng.randint(8, 18))
        return text[0].upper() + text[1:] + "."


def _replacement(parent_id: int, old: Node, new: Node) -> Node:
    """Returns the mutation that replaces `old` with `new` in its parent. The added nodes form a flat list."""
    adds: list[Node] = []

    def add(node: Node, parent: int) -> None:
        flat = {**node, "childNodes": []} if "childNodes" in node else node
        adds.append({"parentId": parent, "nextId": None, "node": flat})
        for child in node.get("childNodes", ()):
            add(child, node["id"])

    add(new, parent_id)
    return {
        "source": 0,
        "texts": [],
        "attributes": [],
        "removes": [{"parentId": parent_id, "id": old["id"]}],
        "adds": adds,
    }


LAYOUT = (
    "*{box-sizing:border-box}body{margin:0;background:#f4f5f2;color:#24302a;font:14px/1.4 system-ui,sans-serif}"
    ".app{position:relative;width:1280px}.top{position:fixed;z-index:5;top:0;left:0;width:1280px;height:56px;"
    "background:#1f4d3a;color:#fff}.top>*{position:absolute;top:14px;color:#fff}.logo{left:24px;font-weight:700;"
    "font-size:18px;text-decoration:none}.top-link{width:80px;text-decoration:none}.top-link:nth-child(2){left:208px}"
    ".top-link:nth-child(3){left:298px}.top-link:nth-child(4){left:388px}.top-link:nth-child(5){left:478px}"
    ".top .search{left:640px;width:240px;height:28px;color:#222}.top .spark{left:920px;top:8px}"
    ".top .btn-basket{left:1160px;width:100px}.icon{width:16px;height:16px}"
    ".side{position:absolute;top:72px;left:0;width:208px;padding-left:16px}.filter{display:flex;height:32px;gap:8px}"
    ".main{position:absolute;top:56px;left:208px;width:1072px}.live{height:340px;overflow:hidden;padding:12px}"
    ".panel{background:#fff;height:316px;overflow:hidden;padding:8px 16px}"
    ".panel-title{font-size:16px;margin:0 0 6px}"
    ".panel-row{display:grid;grid-template-columns:120px 1fr 120px 120px;height:24px}.badge-paid{color:#16794c}"
    ".badge-packed{color:#8a5a00}.badge-sent{color:#1558a6}.badge-returned{color:#b3261e}"
    ".grid{display:grid;grid-template-columns:repeat(4,256px);grid-auto-rows:232px}"
    ".card{background:#fff;margin:6px;padding:8px;position:relative;overflow:hidden}.card-picture{height:84px}"
    ".card-title{font-size:14px;margin:4px 0}.card-text{font-size:11px;height:30px;overflow:hidden;margin:0}"
    ".stock{height:5px;background:#e3e6df;margin:3px 0}.stock-bar{height:5px;background:#4d9a70}"
    ".btn{background:#2f7d5b;color:#fff;border:0;border-radius:4px;padding:5px 10px}"
)
UTILITIES = (
    "display: flex; align-items: center",
    "display: inline-block; vertical-align: middle",
    "transition: background-color 120ms ease-in-out, border-color 120ms ease-in-out",
    "overflow: hidden; text-overflow: ellipsis; white-space: nowrap",
    "box-shadow: rgba(0, 0, 0, 0.12) 0px 1px 3px, rgba(0, 0, 0, 0.24) 0px 1px 2px",
    "position: relative; isolation: isolate",
)
PROPERTIES_TEXT = """
margin-top margin-bottom padding-left padding-right border-radius line-height max-width min-height gap top
left font-size letter-spacing border-width outline-offset text-indent
"""
PROPERTIES = tuple(PROPERTIES_TEXT.split())


def _stylesheet(rng: random.Random, rules: int) -> str:
    """Returns CSS with the layout's rules, followed by generated rules for utility classes, as on large sites.

    `rules`: number of generated rules.
    """
    text = [LAYOUT]
    for number in range(rules):
        name = f".{rng.choice(WORDS)}-{rng.choice(('sm', 'md', 'lg', 'xl'))}-{number}"
        body = ";".join(
            f"{rng.choice(PROPERTIES)}: {rng.randrange(96)}{rng.choice(('px', 'rem', '%'))}"
            for _ in range(rng.randint(1, 3))
        )
        state = rng.choice(("", "", ":hover", ":focus-visible", "::before"))
        text.append(f"{name}{state} {{ {rng.choice(UTILITIES)}; {rng.choice(UTILITIES)}; {body} }}")
    return "\n".join(text)


def _icon_path(rng: random.Random) -> str:
    strokes = {"l": 2, "L": 2, "q": 4, "c": 6}  # number of coordinates of each command
    points = ""
    for _ in range(rng.randint(4, 9)):
        stroke = rng.choice(tuple(strokes))
        low, high = (1, 23) if stroke.isupper() else (-8, 8)
        points += stroke + " ".join(f"{rng.uniform(low, high):.2f}" for _ in range(strokes[stroke]))
    return f"M12 12{points}z"
