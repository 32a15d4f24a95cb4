"use strict";
// The three charts. They share their cursor and their time axis, and failovers are marked in all of them.

const PALETTE = 8;
const LADDER = [0, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000];
const MARKS = {
  "failover-started": "bad",
  "failover-finished": "good",
  "endpoint-down": "warn",
};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

class Chart {
  // `place`: id of its element; `label`: what a screen reader calls it; `value`: how its numbers are written; `first`:
  // where in the palette its colours begin; `from`: above it the scale is logarithmic, below it can go down to 0.
  constructor(place, label, value, first, from) {
    this.first = first;
    this.from = from;
    this.box = document.getElementById(`chart-${place}`);
    this.legend = document.getElementById(`legend-${place}`);
    this.label = label;
    this.value = value;
    this.names = [];
    this.data = [[]];
    this.events = [];
    this.plot = null;
    this.box.setAttribute("role", "img");
    new ResizeObserver(() => this.resize()).observe(this.box);
  }

  show(names, data, events) {
    const same = this.plot && names.length === this.names.length && names.every((name, i) => name === this.names[i]);
    this.names = names;
    this.data = data;
    this.events = events;
    this.drawn = [data[0], ...data.slice(1).map((line) => line.map((value) => (value === null ? null : this.height(value))))];
    if (same) this.plot.setData(this.drawn);
    else this.draw();
    this.tell(null);
  }

  // Where a value is drawn. Durations of microseconds and of seconds are to be told apart in the same chart.
  height(value) {
    return this.from ? Math.asinh(value / this.from) : value;
  }

  // The places of a series whose neighbours are gaps: no line leads there. Null if there are none.
  alone(series) {
    const line = this.drawn[series];
    const gap = (i) => line[i] === null || line[i] === undefined;
    const found = [...line.keys()].filter((i) => !gap(i) && gap(i - 1) && gap(i + 1));
    return found.length ? found : null;
  }

  // Which heights have a line, and what is written there.
  ladder() {
    if (!this.from) return { values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.value(tick))) };
    return {
      splits: (_, axis, low, high) => LADDER.map((value) => this.height(value)).filter((height) => height <= high),
      values: (_, ticks) => ticks.map((_, i) => this.value(LADDER[i])),
    };
  }

  // Anew: other series, or other colours.
  draw() {
    if (this.plot) this.plot.destroy();
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    const font = "11px system-ui, sans-serif";
    this.plot = new uPlot(
      {
        width: this.box.clientWidth || 300,
        height: 190,
        padding: [8, 8, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: "pgdbpool" }, drag: { x: false, y: false }, points: { size: 7 } },
        scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, this.from ? this.height(0.02) : 1)] } },
        axes: [
          { ...axis, font, size: 26, space: 60, values: [[60, "{HH}:{mm}", null, null, null, null, null, null, 0], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 0]] },
          { ...axis, font, size: 52, space: 34, ...this.ladder() },
        ],
        series: [
          {},
          ...this.names.map((name, i) => ({
            label: name,
            stroke: colour(`series-${(this.first + i) % PALETTE}`),
            width: 2,
            // Where nothing was counted there is no line; a moment between two gaps is a point.
            points: { show: false, size: 4, filter: (_, i) => this.alone(i) },
            spanGaps: false,
          })),
        ],
        hooks: { draw: [(plot) => this.marks(plot)], setCursor: [(plot) => this.tell(plot.cursor.idx)] },
      },
      this.drawn,
      this.box,
    );
  }

  resize() {
    if (this.plot && this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: 190 });
  }

  marks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    for (const { event } of this.events) {
      const kind = own(MARKS, event.kind);
      const x = Math.round(plot.valToPos(event.at, "x", true)) + 0.5;
      if (!kind || x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(kind);
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash(kind === "warn" ? [3 * devicePixelRatio, 4 * devicePixelRatio] : []);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const size = 4 * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x - size, bbox.top);
      ctx.lineTo(x + size, bbox.top);
      ctx.lineTo(x, bbox.top + 1.4 * size);
      ctx.fill();
    }
    ctx.restore();
  }

  // The numbers at the cursor, or the latest.
  tell(index) {
    const at = index === null || index === undefined ? this.data[0].length - 1 : index;
    const items = this.names.map((name, i) => ({ name, i, value: this.data[i + 1][at] }));
    keep(
      this.legend,
      items,
      (item) => item.name,
      () => h("li", {}, h("i"), h("span"), h("b")),
      (child, item) => {
        child.children[0].className = `series-${(this.first + item.i) % PALETTE}`;
        say(child.children[1], item.name);
        say(child.children[2], item.value === null || item.value === undefined ? "–" : this.value(item.value));
      },
    );
    if (index === null) {
      const words = items.map((item) => `${item.name} ${item.value == null ? "nothing" : this.value(item.value)}`);
      mark(this.box, "aria-label", `${this.label}, now: ${words.join(", ") || "nothing"}`);
    }
  }
}
