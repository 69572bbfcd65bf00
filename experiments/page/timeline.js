// The timeline: one step of one policy at a time, five lanes, zoom and pan.  Times are whole numbers of 0.1 us.
"use strict";
(() => {
  const folded = [];
  addEventListener("beforeprint", () => {
    folded.push(...document.querySelectorAll("details.printed:not([open])"));
    folded.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => folded.splice(0).forEach((part) => (part.open = false)));

  const { runs, first, lanes: LANES } = JSON.parse(document.getElementById("data").textContent);
  if (!runs.length) return;
  const chart = document.getElementById("chart");
  const readout = document.getElementById("readout");
  const choice = document.getElementById("run");

  const KINDS = {
    resident: "GPU job, unit there or landing",
    copied: "GPU job, unit copied for it",
    cpu: "CPU job",
    demand: "demand copy",
    prefetch: "prefetch",
    swap: "swap",
    dense: "dense part",
  };
  const [START, LENGTH, STEP, LAYER, UNIT, TOKENS, RESIDENT, BYTES, FIELDS] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const TICKS_PER_MS = 10000;
  const SHORTEST = 200; // ticks that the view shows at least
  const AXIS = 34, NAME = 15, BAR = 24, GAP = 5;
  const HEIGHT = AXIS + LANES.length * (NAME + BAR + GAP);

  let run = runs[first];
  let from = 0, to = run.length;
  let chosen = null; // { lane, at }: at = where the span begins in its lane's list
  let width = 0;

  const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const x = (tick) => ((tick - from) / (to - from)) * width;
  const top = (lane) => AXIS + lane * (NAME + BAR + GAP) + NAME;
  const count = (lane) => run.lanes[lane].length / FIELDS;

  function kind(lane, at) {
    const spans = run.lanes[lane];
    if (lane === 0) return spans[at + UNIT] < 0 ? "dense" : spans[at + RESIDENT] ? "resident" : "copied";
    return ["cpu", "demand", "prefetch", "swap"][lane - 1];
  }

  // The last span of a lane that begins at or before a tick, as a position in the list; -1 if there is none.
  function before(lane, tick) {
    const spans = run.lanes[lane];
    let low = 0, high = count(lane);
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans[middle * FIELDS + START] <= tick) low = middle + 1;
      else high = middle;
    }
    return (low - 1) * FIELDS;
  }

  function nearest(lane, tick, reach) {
    const spans = run.lanes[lane];
    const first = before(lane, tick);
    const candidates = [first, first + FIELDS].filter((at) => at >= 0 && at < spans.length);
    const distance = (at) => Math.max(0, spans[at + START] - tick, tick - spans[at + START] - spans[at + LENGTH]);
    candidates.sort((a, b) => distance(a) - distance(b));
    return candidates.length && distance(candidates[0]) <= reach ? candidates[0] : null;
  }

  const ms = (ticks) => `${(ticks / TICKS_PER_MS).toFixed(3)} ms`;
  const brief = (ticks) => (ticks < TICKS_PER_MS ? `${(ticks / 10).toFixed(1)} \u00b5s` : ms(ticks));

  function describe() {
    if (!chosen) {
      const told = `${run.name}: the layers of step ${run.step} take ${ms(run.length)}.`;
      readout.innerHTML = `<span>${escaped(told)}</span> <span class="screen">Point at a block, or tap it, to read it.</span>`;
      return;
    }
    const span = run.lanes[chosen.lane].slice(chosen.at, chosen.at + FIELDS);
    const what = kind(chosen.lane, chosen.at);
    const copy = chosen.lane > 1;
    const fields = { kind: KINDS[what], layer: span[LAYER] };
    if (what !== "dense") fields.unit = span[UNIT];
    if (!copy) fields.tokens = span[TOKENS];
    if (what !== "dense") fields.bytes = span[BYTES] ? `${(span[BYTES] / 1e6).toPrecision(3)} MB` : "not known";
    fields.starts = ms(span[START]);
    fields.takes = brief(span[LENGTH]);
    if (span[STEP] !== run.step) fields.step = span[STEP];
    readout.innerHTML = Object.entries(fields)
      .map(([name, value]) => `<span data-field="${name}">${name === "kind" ? "" : `${name} `}<b>${escaped(value)}</b></span>`)
      .join(" ");
  }

  function ticks() {
    const wanted = ((to - from) / TICKS_PER_MS / width) * 90;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const every = power * [1, 2, 5, 10].find((times) => power * times >= wanted);
    const digits = Math.max(0, -Math.floor(Math.log10(every)));
    const marks = [];
    for (let i = Math.ceil(from / TICKS_PER_MS / every); i * every * TICKS_PER_MS <= to; i++) {
      const at = x(i * every * TICKS_PER_MS);
      if (at < 20 || at > width - 30) continue;
      marks.push(`<text class="middle" x="${at}" y="11">${(i * every).toFixed(digits)} ms</text>`);
    }
    return marks.join("");
  }

  function layers() {
    const drawn = [];
    let free = 0; // where the next name may begin
    run.layers.forEach(([start, layer], i) => {
      const end = i + 1 < run.layers.length ? run.layers[i + 1][0] : run.length;
      if (end < from || start > to) return;
      const left = x(start);
      const shown = Math.max(left, 0);
      const room = Math.min(x(end), width) - shown;
      if (left >= 0 && room > 10) drawn.push(`<line class="edge" x1="${left}" x2="${left}" y1="16" y2="${HEIGHT}"/>`);
      const text = room > 70 ? `layer ${layer}` : String(layer);
      const wide = 7 * text.length + 6;
      if (shown < free || shown + wide > width || (left < 0 && room < wide)) return;
      drawn.push(`<text x="${shown + 3}" y="28">${text}</text>`);
      free = shown + wide;
    });
    return drawn.join("");
  }

  // One path a kind: thousands of blocks are drawn in a few milliseconds.
  function blocks() {
    const paths = {}, labels = [];
    LANES.forEach((_, lane) => {
      const spans = run.lanes[lane];
      for (let at = Math.max(0, before(lane, from)); at < spans.length && spans[at + START] < to; at += FIELDS) {
        const left = Math.max(x(spans[at + START]), -1);
        const right = Math.min(x(spans[at + START] + spans[at + LENGTH]), width + 1);
        if (right < 0) continue;
        const wide = right - left;
        const drawn = wide > 3 ? wide - 1 : Math.max(wide, 0.5); // a gap where there is room for one
        const what = kind(lane, at);
        (paths[what] ||= []).push(`M${left.toFixed(2)} ${top(lane)}h${drawn.toFixed(2)}v${BAR}h${(-drawn).toFixed(2)}z`);
        if (wide > 30 && spans[at + UNIT] >= 0) {
          labels.push(`<text class="label" x="${(left + right) / 2}" y="${top(lane) + 16}">${spans[at + UNIT]}</text>`);
        }
      }
    });
    return Object.entries(paths).map(([what, d]) => `<path class="${what}" d="${d.join("")}"/>`).join("") + labels.join("");
  }

  function outline() {
    if (!chosen) return "";
    const spans = run.lanes[chosen.lane];
    const left = x(spans[chosen.at + START]);
    const wide = Math.max(x(spans[chosen.at + START] + spans[chosen.at + LENGTH]) - left, 2);
    return `<rect class="chosen" x="${left}" y="${top(chosen.lane)}" width="${wide}" height="${BAR}"/>`;
  }

  function draw() {
    width = chart.clientWidth || 800;
    chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const rows = LANES.map((_, lane) => `<rect class="row" x="0" y="${top(lane)}" width="${width}" height="${BAR}"/>`);
    const names = LANES.map(
      (name, lane) => `<text class="lane" x="0" y="${top(lane) - 4}">${name}${count(lane) ? "" : ": none"}</text>`,
    );
    chart.innerHTML = [...rows, layers(), ...names, ticks(), blocks(), outline()].join("");
  }

  let asked = false;
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  }

  function show(start, end) {
    const length = Math.min(Math.max(end - start, SHORTEST), run.length);
    from = Math.min(Math.max(start, 0), run.length - length);
    to = from + length;
    redraw();
  }

  function zoom(factor, around = (from + to) / 2) {
    show(around - (around - from) * factor, around + (to - around) * factor);
  }

  const pan = (share) => show(from + share * (to - from), to + share * (to - from));

  function choose(lane, at) {
    chosen = at === null ? null : { lane, at };
    describe();
    redraw();
  }

  // Keeps the chosen span in view and wide enough to be seen.
  function reveal() {
    const spans = run.lanes[chosen.lane];
    const start = spans[chosen.at + START], end = start + spans[chosen.at + LENGTH];
    if ((end - start) / (to - from) < 2 / width) show(start - 50 * (end - start), start + 50 * (end - start));
    if (start < from || end > to) show((start + end - (to - from)) / 2, (start + end + (to - from)) / 2);
  }

  function along(direction) {
    const lane = chosen ? chosen.lane : 0;
    const last = (count(lane) - 1) * FIELDS;
    if (last < 0) return;
    const at = chosen ? chosen.at + direction * FIELDS : Math.max(before(lane, from), 0);
    choose(lane, Math.min(Math.max(at, 0), last));
    reveal();
  }

  function across(direction) {
    if (!chosen) return along(0);
    const tick = run.lanes[chosen.lane][chosen.at + START];
    for (let lane = chosen.lane + direction; lane >= 0 && lane < LANES.length; lane += direction) {
      const at = nearest(lane, tick, Infinity);
      if (at === null) continue;
      choose(lane, at);
      return reveal();
    }
  }

  const actions = {
    left: () => pan(-0.25),
    right: () => pan(0.25),
    out: () => zoom(2),
    in: () => zoom(0.5),
    all: () => show(0, run.length),
  };
  const keys = {
    ArrowLeft: () => along(-1),
    ArrowRight: () => along(1),
    ArrowUp: () => across(-1),
    ArrowDown: () => across(1),
    "+": actions.in,
    "=": actions.in,
    "-": actions.out,
    0: actions.all,
    Escape: () => choose(0, null),
  };
  chart.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", actions[button.dataset.do]));

  // ---- mouse, pen and fingers ----

  const place = (event) => {
    const box = chart.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const tickAt = (at) => from + (at / width) * (to - from);

  function pick(event, reach) {
    const at = place(event);
    const lane = Math.floor((at.y - AXIS) / (NAME + BAR + GAP));
    const found = lane < 0 || lane >= LANES.length ? null : nearest(lane, tickAt(at.x), (reach / width) * (to - from));
    choose(lane, found);
  }

  const down = new Map(); // pointer -> where it was last
  let moved = 0;
  chart.addEventListener("pointerdown", (event) => {
    down.set(event.pointerId, place(event));
    moved = down.size > 1 ? Infinity : 0;
    chart.setPointerCapture(event.pointerId);
  });
  chart.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) {
      if (event.pointerType === "mouse") pick(event, 3);
      return;
    }
    const now = place(event), was = down.get(event.pointerId);
    down.set(event.pointerId, now);
    moved += Math.abs(now.x - was.x);
    if (down.size === 1 && moved > 4) show(tickAt(was.x - now.x), tickAt(was.x - now.x) + to - from);
    if (down.size === 2) {
      const [other] = [...down].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const apart = Math.abs(now.x - other.x), before = Math.abs(was.x - other.x);
      if (apart > 10 && before > 10) zoom(before / apart, tickAt(other.x));
    }
  });
  function lift(event) {
    if (down.delete(event.pointerId) && event.type === "pointerup" && moved <= 4) {
      pick(event, event.pointerType === "mouse" ? 3 : 14);
    }
  }
  chart.addEventListener("pointerup", lift);
  chart.addEventListener("pointercancel", lift);
  chart.addEventListener("dblclick", (event) => zoom(0.4, tickAt(place(event).x)));
  chart.addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey || event.metaKey) zoom(Math.exp(Math.sign(event.deltaY) * 0.25), tickAt(place(event).x));
      else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((event.deltaX || event.deltaY) / width);
      else return;
      event.preventDefault();
    },
    { passive: false },
  );

  choice.innerHTML = runs.map((each, i) => `<option value="${i}">${escaped(each.name)}</option>`).join("");
  choice.value = first;
  choice.addEventListener("change", () => {
    const whole = from === 0 && to === run.length;
    run = runs[Number(choice.value)];
    chosen = null;
    describe();
    show(from, whole ? run.length : to);
  });
  new ResizeObserver(() => {
    if (chart.clientWidth !== width) redraw();
  }).observe(chart);
  describe();
  draw();
})();
