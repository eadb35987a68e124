"""Draws the data flow of the four frameworks: python docs/figures/frameworks.py writes the SVGs beside this file.

Only the standard library. Each picture is a card with a background of its own, to be read on light and on dark pages.
Solid arrows: acting and training alike; dashed ones: training only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH = 960
FILL = {
    "input": "#e4ebf3",
    "vlm": "#e3dcf5",
    "head": "#d9efdf",
    "out": "#fbe9c8",
    "loss": "#fadbd8",
}
EDGE = {"input": "#6b84a3", "vlm": "#7a5fc0", "head": "#3f8f5f", "out": "#b3861d", "loss": "#b9483d"}
INK, FAINT, PAPER = "#1f2430", "#59606e", "#fdfdfb"


@dataclass(frozen=True)
class Box:
    """A named step; lines below the first are small (shapes).

    Args:
        x: Left.
        y: Top.
        w: Width.
        h: Height.
        lines: Its text.
        kind: Which colour.
    """

    x: int
    y: int
    w: int
    h: int
    lines: tuple[str, ...]
    kind: str

    def at(self, side: str, share: float = 0.5) -> tuple[float, float]:
        """A point of the border: `l`, `r`, `t` or `b`, and how far along it."""
        if side in "lr":
            return (self.x if side == "l" else self.x + self.w), self.y + share * self.h
        return self.x + share * self.w, (self.y if side == "t" else self.y + self.h)


@dataclass
class Picture:
    """An SVG in the making."""

    title: str
    height: int
    parts: list[str] = field(default_factory=list)

    def box(self, x: int, y: int, w: int, h: int, *lines: str, kind: str) -> Box:
        """Draw a box."""
        made = Box(x, y, w, h, lines, kind)
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{FILL[kind]}" stroke="{EDGE[kind]}" '
            'stroke-width="1.4"/>'
        )
        step, first = 16, y + h / 2 - 8 * (len(lines) - 1) + 4.5
        for number, line in enumerate(lines):
            style = f'fill="{INK}" font-size="13.5" font-weight="600"'
            style = style if number == 0 else f'fill="{FAINT}" font-size="12"'
            self.text(x + w / 2, first + step * number, line, style)
        return made

    def frame(self, x: int, y: int, w: int, h: int, label: str) -> None:
        """A dotted frame around what is repeated."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="10" fill="none" stroke="{FAINT}" stroke-dasharray="2 4"/>'
        )
        self.text(x + w - 8, y + 15, label, f'fill="{FAINT}" font-size="12"', "end")

    def text(self, x: float, y: float, words: str, style: str, anchor: str = "middle") -> None:
        """Words at a place."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{escape(words)}</text>')

    def note(self, y: float, words: str, learns: bool = False) -> None:
        """A line below the picture; `learns`: about training."""
        self.text(20, y, words, f'fill="{EDGE["loss"] if learns else FAINT}" font-size="12.5"', "start")

    def arrow(self, *points: tuple[float, float], learns: bool = False) -> None:
        """A line through points with a head at its end; `learns`: in training only."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dash, colour = (' stroke-dasharray="5 4"', EDGE["loss"]) if learns else ("", INK)
        mark = "learns" if learns else "acts"
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash} marker-end="url(#{mark})"/>'
        )

    def svg(self) -> str:
        """The file's text."""
        marks = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
            for name, colour in (("acts", INK), ("learns", EDGE["loss"]))
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" role="img">'
            f"<title>{escape(self.title)}</title><defs>{marks}</defs>"
            f'<rect width="{WIDTH}" height="{self.height}" rx="14" fill="{PAPER}" stroke="#c9ccd3"/>'
        )
        body = "\n".join(self.parts)
        return f"{head}\n{body}\n</svg>\n"


def begin(title: str, height: int, prompt: tuple[str, ...] = ("chat template",)) -> tuple[Picture, Box, Box]:
    """A picture with what all four share: views and instruction into a Qwen-VL. Returns also the tower and the model."""
    picture = Picture(title, height)
    picture.text(20, 28, title, f'fill="{INK}" font-size="16" font-weight="700"', "start")
    views = picture.box(20, 48, 150, 50, "views", "uint8 (B, H, W, 3) each", kind="input")
    words = picture.box(20, 128, 150, 50, "instruction", "text", kind="input")
    tower = picture.box(200, 48, 130, 50, "vision tower", "patches → tokens", kind="vlm")
    template = picture.box(200, 128, 130, 50, *prompt, kind="vlm")
    model = picture.box(370, 48, 130, 130, "language model", "one causal pass", kind="vlm")
    picture.arrow(views.at("r"), tower.at("l"))
    picture.arrow(words.at("r"), template.at("l"))
    picture.arrow(tower.at("r"), (370, tower.at("r")[1]))
    picture.arrow(template.at("r"), (370, template.at("r")[1]))
    return picture, tower, model


def oft() -> Picture:
    """Qwen-OFT."""
    picture, _, model = begin("Qwen-OFT: read in parallel", 300, ("chat template", "+ H query tokens"))
    states = picture.box(540, 88, 120, 50, "H states", "(B, H, hidden)", kind="vlm")
    head = picture.box(700, 88, 110, 50, "MLP ResNet", "step by step", kind="head")
    chunk = picture.box(845, 88, 95, 50, "chunk", "(B, H, D)", kind="out")
    state = picture.box(540, 190, 120, 50, "state", "(B, S) normalised", kind="input")
    picture.arrow(model.at("r"), states.at("l"))
    picture.arrow(states.at("r"), head.at("l"))
    picture.arrow(state.at("r"), (755, 215), head.at("b"))
    picture.arrow(head.at("r"), chunk.at("l"))
    picture.box(800, 190, 140, 50, "L1 loss", "actions (B, H, D)", kind="loss")
    picture.arrow(chunk.at("b"), (892, 190), learns=True)
    picture.note(
        276,
        "acting: one pass, no loop; the prompt ends at its last query. Chunks are un-normalised at the end.",
    )
    return picture


def flow(pi: bool) -> Picture:
    """Qwen-GR00T, or Qwen-PI."""
    title = (
        "Qwen-PI: an action expert that reads the VLM layer by layer"
        if pi
        else "Qwen-GR00T: a diffusion transformer reads the last layer"
    )
    picture, _, model = begin(title, 446)
    lines = ("layers 1, 3, 5, …", "a block reads its own") if pi else ("last layer", "(B, L, hidden)")
    context = picture.box(540, 88, 150, 50, lines[0], lines[1], kind="vlm")
    kv = picture.box(740, 88, 180, 50, "keys and values", "once per prediction", kind="head")
    picture.arrow(model.at("r"), context.at("l"))
    picture.arrow(context.at("r"), kv.at("l"))
    picture.frame(355, 195, 585, 212, "4 Euler steps, t = 0 (noise) → 1 (action)")
    state = picture.box(20, 210, 150, 50, "state", "(B, S) normalised", kind="input")
    noise = picture.box(20, 330, 150, 50, "noise", "(B, H, D)", kind="input")
    one = picture.box(200, 210, 130, 50, "MLP", "1 token", kind="head")
    learned = picture.box(200, 270, 130, 50, "learned tokens", "32", kind="head")
    picture.arrow(state.at("r"), one.at("l"))
    enc = picture.box(375, 330, 140, 50, "MLP with time", "H tokens", kind="head")
    picture.arrow(noise.at("r"), enc.at("l"))
    size = ("as many, as wide as", "the VLM's layers") if pi else ("16 × 768 (DiT-B) or", "16 × 1536 (DiT-L)")
    lines = ("transformer blocks", *size, "time: AdaLN", "even: attend to keys", "odd: to the tokens")
    blocks = picture.box(560, 235, 180, 145, *lines, kind="head")
    picture.arrow(one.at("r"), (545, 235), (560, 250))
    picture.arrow(learned.at("r"), (560, 295))
    picture.arrow(enc.at("r"), (560, 355))
    picture.arrow(kv.at("b", 0.2), (776, 180), (650, 180), blocks.at("t"))
    out = picture.box(785, 250, 140, 50, "MLP" if pi else "norm, MLP", "velocity (B, H, D)", kind="out")
    picture.arrow((740, 275), out.at("l"))
    picture.arrow(out.at("b"), (855, 394), (445, 394), enc.at("b"))
    picture.text(800, 389, "x ← x + v / 4", f'fill="{FAINT}" font-size="12"')
    learning = "training: x = (1 − t) noise + t action, t drawn; loss |v − (action − noise)|², "
    picture.note(428, f"{learning}{2 if pi else 8} draws per sample over one pass of the VLM", learns=True)
    return picture


def fast() -> Picture:
    """Qwen-FAST."""
    picture, _, model = begin("Qwen-FAST: actions as words", 330)
    scores = picture.box(540, 88, 150, 50, "next word", "scores of action words", kind="vlm")
    picture.arrow(model.at("r"), scores.at("l"))
    grammar = picture.box(740, 48, 190, 50, "grammar", "words that can make a chunk", kind="head")
    picture.arrow(scores.at("r"), (715, 113), (715, 73), grammar.at("l"))
    words = picture.box(740, 128, 190, 50, "n words", "<robot_action_17> …", kind="out")
    picture.arrow(grammar.at("b"), words.at("t"))
    picture.arrow((740, 160), (520, 160), (500, 160))
    picture.text(652, 176, "word by word, KV cache", f'fill="{FAINT}" font-size="12"')
    back = picture.box(740, 210, 190, 50, "FAST⁻¹", "BPE → coefficients → IDCT", kind="head")
    picture.arrow(words.at("b"), back.at("t"))
    chunk = picture.box(560, 210, 140, 50, "chunk", "(B, H, D)", kind="out")
    picture.arrow(back.at("l"), chunk.at("r"))
    actions = picture.box(20, 210, 150, 50, "actions", "(B, H, D) normalised", kind="input")
    encode = picture.box(200, 210, 170, 50, "FAST", "DCT → round → BPE", kind="head")
    picture.arrow(actions.at("r"), encode.at("l"), learns=True)
    loss = picture.box(400, 210, 130, 50, "cross-entropy", "of the answer", kind="loss")
    picture.arrow(encode.at("r"), loss.at("l"), learns=True)
    picture.arrow((570, 138), (570, 192), (480, 192), (480, 210), learns=True)
    picture.note(
        306, "no action head: the VLM's own language head says the words; 10 to 100 of them make a chunk."
    )
    return picture


def main() -> None:
    """Write the four files."""
    folder = Path(__file__).parent
    for name, picture in {"oft": oft(), "gr00t": flow(False), "pi": flow(True), "fast": fast()}.items():
        (folder / f"{name}.svg").write_text(picture.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
