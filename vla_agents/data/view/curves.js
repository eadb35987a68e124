"use strict";
// Curves over the steps of an episode, on a canvas: several lines, shaded stretches, marks, and where we are.
const COLOURS = ["#3b78e7", "#e8710a", "#1e9e58", "#d33a2c", "#8e5bd0", "#9a6a4f", "#e052a0", "#6f7782", "#a5a900", "#12a4b5"];

class Plot {
  // seek: called with the step that was clicked.
  constructor(parent, title, seek) {
    this.lines = []; this.hidden = new Set(); this.length = 1; this.step = 0;
    this.shaded = []; this.marks = []; this.level = null;
    const box = document.createElement("div"); box.className = "plot";
    const head = document.createElement("h3"); head.textContent = title;
    this.names = document.createElement("div"); this.names.className = "names";
    this.canvas = document.createElement("canvas");
    this.here = document.createElement("i"); this.here.className = "here";  // moved, so that no curve is drawn anew
    const area = document.createElement("div"); area.className = "area"; area.append(this.canvas, this.here);
    box.append(head, this.names, area); parent.append(box);
    const go = event => {
      const at = this.canvas.getBoundingClientRect();
      const share = (event.clientX - at.left - this.left) / (at.width - this.left - this.right);
      seek(Math.round(share * (this.length - 1)));
    };
    this.canvas.addEventListener("pointerdown", event => { this.canvas.setPointerCapture(event.pointerId); go(event); });
    this.canvas.addEventListener("pointermove", event => { if (event.buttons & 1) go(event); });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }
  get left() { return 52; }
  get right() { return 8; }

  // lines: [{name, values, dashed, colour}]; shaded: steps; marks: [{step, severity}]; level: a number with a dotted line.
  show(lines, length, { shaded = [], marks = [], level = null } = {}) {
    Object.assign(this, { lines, length, shaded, marks, level });
    this.shownLines = lines.filter(line => !line.dashed);
    this.values = this.shownLines.map(() => document.createElement("b"));
    this.names.replaceChildren(...this.shownLines.map((line, k) => {
      const name = document.createElement("button"), swatch = document.createElement("i");
      line.colour = line.colour || COLOURS[k % COLOURS.length];
      swatch.style.background = line.colour;
      name.append(swatch, line.name, " ", this.values[k]);
      name.classList.toggle("off", this.hidden.has(line.name));
      name.onclick = () => {
        if (!this.hidden.delete(line.name)) this.hidden.add(line.name);
        name.classList.toggle("off", this.hidden.has(line.name));
        this.draw();
      };
      return name;
    }));
    const colours = new Map(lines.filter(line => !line.dashed).map(line => [line.name, line.colour]));
    for (const line of lines) line.colour = colours.get(line.name) || "#888";
    this.draw();
  }

  at(step) {
    this.step = step;
    const inner = this.canvas.clientWidth - this.left - this.right;
    this.here.style.transform = `translateX(${this.left + (this.length > 1 ? step / (this.length - 1) : 0.5) * inner}px)`;
    if (this.values) this.values.forEach((place, k) => { const v = this.shownLines[k].values[step]; place.textContent = v === null || v === undefined ? "" : v.toPrecision(3); });
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    if (!width) return;
    this.canvas.width = width * ratio; this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d"); pen.scale(ratio, ratio);
    const shown = this.lines.filter(line => !this.hidden.has(line.name));
    let low = Infinity, high = -Infinity;
    for (const line of shown) for (const v of line.values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
    if (this.level !== null) { low = Math.min(low, this.level); high = Math.max(high, this.level); }
    if (!(low <= high)) { low = 0; high = 1; }
    const rim = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1; low -= rim; high += rim;
    const top = 4, bottom = height - 18, inner = width - this.left - this.right;
    const x = step => this.left + (this.length > 1 ? step / (this.length - 1) : 0.5) * inner;
    const y = v => bottom - (v - low) / (high - low) * (bottom - top);
    this.grid(pen, x, y, low, high, top, bottom, width);
    pen.fillStyle = "#e8a90030";
    const wide = Math.max(inner / Math.max(this.length - 1, 1), 1);
    for (const step of this.shaded) pen.fillRect(x(step) - wide / 2, top, wide, bottom - top);
    if (this.level !== null) this.line(pen, [[x(0), y(this.level)], [x(this.length - 1), y(this.level)]], "#888", [2, 3]);
    for (const line of shown) this.line(pen, line.values.map((v, t) => v === null ? null : [x(t), y(v)]), line.colour, line.dashed ? [4, 3] : []);
    for (const mark of this.marks) {
      pen.fillStyle = { error: "#d33a2c", warning: "#e0a000" }[mark.severity] || "#888";
      pen.beginPath(); pen.moveTo(x(mark.step), top + 7); pen.lineTo(x(mark.step) - 4, top); pen.lineTo(x(mark.step) + 4, top); pen.fill();
    }
    this.at(this.step);
  }

  grid(pen, x, y, low, high, top, bottom, width) {
    pen.font = "11px system-ui, sans-serif"; pen.lineWidth = 1;
    const ticks = (from, to, most) => {
      const rough = (to - from) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
      const size = [1, 2, 5, 10].map(m => m * power).find(m => m >= rough), found = [];
      for (let k = Math.ceil(from / size); k * size <= to + size * 1e-9; k++) found.push([k * size, size]);
      return found;
    };
    const digits = size => Math.max(0, Math.min(6, -Math.floor(Math.log10(size))));
    for (const [v, size] of ticks(low, high, 5)) {
      this.line(pen, [[this.left, y(v)], [width - this.right, y(v)]], "#8883", []);
      pen.fillStyle = "#8a8f98"; pen.textAlign = "right"; pen.textBaseline = "middle";
      pen.fillText(v.toFixed(digits(size)), this.left - 6, y(v));
    }
    pen.textAlign = "center"; pen.textBaseline = "top";
    for (const [v, size] of ticks(0, this.length - 1, Math.max(2, Math.floor(width / 90)))) {
      if (size >= 1) pen.fillText(String(Math.round(v)), x(v), bottom + 4);
    }
  }

  line(pen, points, colour, dash) {
    pen.strokeStyle = colour; pen.lineWidth = 1.4; pen.setLineDash(dash); pen.beginPath();
    let down = false;
    for (const point of points) {
      if (point === null) { down = false; continue; }
      if (down) pen.lineTo(...point); else pen.moveTo(...point);
      down = true;
    }
    pen.stroke(); pen.setLineDash([]);
  }
}
