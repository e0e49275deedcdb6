"use strict";
// Draws the report from the data in this file. Names come from playbooks and inventories: they only ever become text, never markup.
(() => {
  const began = performance.now();
  const $ = id => document.getElementById(id);
  const meta = JSON.parse($("meta").textContent);
  const TICK = 1e-4; // seconds
  const NONE = 0xffffffff;
  const GUTTER = 150;
  const data = decode($("columns").textContent.trim());
  const count = data.start.length;
  const total = Math.max(1, meta.wall / TICK);
  const view = { from: 0, to: total, rows: [], taskHit: null, order: "log", colours: "phase", height: 14, chain: false, drag: null };
  let colour = {};

  function decode(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const types = { B: Uint8Array, H: Uint16Array, I: Uint32Array }, found = {};
    let at = 0;
    for (const [name, type] of meta.columns) {
      const kind = types[type], size = meta.count * kind.BYTES_PER_ELEMENT;
      found[name] = new kind(bytes.slice(at, at + size).buffer);
      at += size;
    }
    return found;
  }

  // Results by host, by start: rows of the timeline.
  const firstOf = new Uint32Array(meta.hosts.length + 1), byHost = new Uint32Array(count);
  (() => {
    for (let i = 0; i < count; i++) firstOf[data.host[i] + 1]++;
    for (let h = 0; h < meta.hosts.length; h++) firstOf[h + 1] += firstOf[h];
    const next = firstOf.slice();
    for (let i = 0; i < count; i++) byHost[next[data.host[i]]++] = i;
    for (let h = 0; h < meta.hosts.length; h++) byHost.subarray(firstOf[h], firstOf[h + 1]).sort((a, b) => data.start[a] - data.start[b]);
  })();
  const inChain = new Uint8Array(count);
  for (const link of meta.chain.links) if (link.number >= 0) inChain[link.number] = 1;

  // How many tasks ran: [time, running] after each change.
  const active = (() => {
    const starts = Float64Array.from(data.start).sort(), ends = new Float64Array(count);
    // Less one tick: a task that begins when another ends does not run beside it.
    for (let i = 0; i < count; i++) ends[i] = data.start[i] + Math.max(0, data.length[i] - 1);
    ends.sort();
    const time = new Float64Array(2 * count + 1), running = new Int32Array(2 * count + 1);
    let n = 1, s = 0, e = 0;
    while (e < count) {
      const up = s < count && starts[s] < ends[e];
      time[n] = up ? starts[s++] : ends[e++];
      running[n] = running[n - 1] + (up ? 1 : -1);
      n++;
    }
    let most = 0;
    for (let i = 0; i < n; i++) most = Math.max(most, running[i]);
    return { time, running, n, most };
  })();

  function element(name, text, css) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (css) made.className = css;
    return made;
  }
  function seconds(value, digits = 2) {
    if (value === null || value === undefined) return "";
    if (value >= 3600) return Math.floor(value / 3600) + " h " + String(Math.floor(value % 3600 / 60)).padStart(2, "0") + " min";
    if (value >= 120) return Math.floor(value / 60) + " min " + String(Math.floor(value % 60)).padStart(2, "0") + " s";
    return value.toFixed(digits) + " s";
  }

  // Text on the page.
  $("title").textContent = meta.title;
  $("subtitle").textContent = meta.subtitle;
  $("footer").textContent = meta.footer;
  if (meta.note) { $("note").hidden = false; $("note").textContent = meta.note; }
  for (const [name, value] of meta.tiles) {
    const tile = element("li");
    tile.append(element("b", value), element("span", name));
    $("tiles").append(tile);
  }
  $("chain-text").textContent = meta.chain.text;

  function table(id, columns, rows, options = {}) {
    const target = $(id);
    let sorted = options.sorted ?? -1, down = true, shown = 100;
    function draw() {
      const head = element("tr");
      columns.forEach((column, i) => {
        const cell = element("th", undefined, column.text ? "text" : "");
        const button = element("button", column.name);
        button.type = "button";
        button.onclick = () => { down = sorted === i ? !down : !column.text; sorted = i; draw(); };
        if (sorted === i) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        cell.append(button);
        head.append(cell);
      });
      const list = rows.slice();
      if (sorted >= 0) {
        const get = columns[sorted].get;
        list.sort((a, b) => { const x = get(a), y = get(b); return (x === y ? 0 : x === null || x < y ? -1 : 1) * (down ? -1 : 1); });
      }
      const body = element("tbody"), top = element("thead");
      top.append(head);
      for (const row of list.slice(0, shown)) {
        const line = element("tr", undefined, options.mark && options.mark(row) ? "slow" : "");
        for (const column of columns) {
          const cell = element("td", undefined, column.text ? "text" : "");
          const value = column.show ? column.show(row) : column.get(row);
          if (value instanceof Node) cell.append(value);
          else if (column.click) {
            const button = element("button", value);
            button.type = "button";
            button.onclick = () => column.click(row);
            cell.append(button);
          } else cell.textContent = value ?? "";
          line.append(cell);
        }
        body.append(line);
      }
      if (list.length > shown) {
        const line = element("tr"), cell = element("td", undefined, "text"), more = element("button", `${list.length - shown} more: show all`);
        cell.colSpan = columns.length;
        more.type = "button";
        more.onclick = () => { shown = list.length; draw(); };
        cell.append(more);
        line.append(cell);
        body.append(line);
      }
      target.replaceChildren(top, body);
    }
    draw();
  }
  function share(part) {
    const box = element("span", undefined, "share");
    box.style.width = Math.max(1, Math.round(110 * part)) + "px";
    return box;
  }
  const time = (name, key) => ({ name, get: row => row[key], show: row => seconds(row[key]) });
  const seek = (id, text) => { $(id).value = text; $(id).dispatchEvent(new Event("input")); $("h-time").scrollIntoView({ block: "start" }); };
  const longestSum = Math.max(...meta.tasks.map(task => task.sum_s), 1e-9), mostBusy = Math.max(...meta.host_figures.map(host => host.busy_s), 1e-9);
  table("tasks", [
    { name: "task", text: true, get: row => row.name, click: row => seek("find-task", row.name) },
    { name: "count", get: row => row.count }, time("sum", "sum_s"),
    { name: "", text: true, get: row => row.sum_s, show: row => share(row.sum_s / longestSum) },
    time("p50", "p50_s"), time("p95", "p95_s"), time("max", "max_s"), time("span", "span_s"),
    { name: "slowest host", text: true, get: row => row.max_at, click: row => seek("find-host", row.max_at) },
    { name: "defined in", text: true, get: row => row.path ?? "" },
  ], meta.tasks, { sorted: 2 });
  table("hosts", [
    { name: "host", text: true, get: row => row.name, click: row => seek("find-host", row.name) },
    { name: "tasks", get: row => row.count }, { name: "failed", get: row => row.failed }, time("busy", "busy_s"),
    { name: "", text: true, get: row => row.busy_s, show: row => share(row.busy_s / mostBusy) },
    time("queue", "queue_s"), time("idle", "idle_s"), time("done early", "after_s"),
    { name: "skew", get: row => row.skew, show: row => row.skew.toFixed(2) }, time("longest", "longest_s"),
    { name: "its longest task", text: true, get: row => row.longest, click: row => seek("find-task", row.longest) },
  ], meta.host_figures, { sorted: 3, mark: row => row.skew >= 1.5 });
  table("links", [
    { name: "at", get: row => row.at, show: row => row.at.toFixed(2) }, { name: "waited for", text: true, get: row => row.cause },
    time("gap", "gap"), time("seconds", "seconds"), { name: "host", text: true, get: row => row.host, click: row => seek("find-host", row.host) },
    { name: "task", text: true, get: row => row.task, click: row => seek("find-task", row.task) },
  ], meta.chain.links);
  if (meta.trend) drawTrend(meta.trend);

  function svg(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function spark(values, width, height) {
    const most = Math.max(...values.filter(value => value !== null), 1e-9);
    const picture = svg("svg", { width, height, role: "img" });
    const x = i => values.length < 2 ? width / 2 : 3 + i * (width - 6) / (values.length - 1), y = value => height - 3 - value / most * (height - 6);
    const points = values.map((value, i) => value === null ? null : x(i).toFixed(1) + "," + y(value).toFixed(1)).filter(point => point);
    picture.append(svg("polyline", { points: points.join(" "), class: "line" }));
    const last = values.length - 1;
    if (values[last] !== null) picture.append(svg("circle", { cx: x(last), cy: y(values[last]), r: 2.5, class: "last" }));
    return picture;
  }
  function drawTrend(trend) {
    $("trend-section").hidden = false;
    $("trend-text").textContent = trend.text;
    const width = 900, height = 120, most = Math.max(...trend.runs.map(run => run.wall), 1e-9);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "wall time of each run" });
    for (const part of [0, 0.5, 1]) {
      const y = 100 - 85 * part;
      picture.append(svg("line", { x1: 60, x2: width, y1: y, y2: y, class: "grid" }), svg("text", { x: 0, y: y + 4 }, seconds(most * part, 1)));
    }
    const step = Math.min(48, (width - 80) / Math.max(1, trend.runs.length));
    trend.runs.forEach((run, i) => {
      const tall = 85 * run.wall / most;
      const column = svg("rect", { x: 64 + i * step, y: 100 - tall, width: Math.max(2, step - 4), height: tall, class: i === trend.runs.length - 1 ? "last" : "dot" });
      column.append(svg("title", {}, `${run.started}: ${seconds(run.wall)}`));
      picture.append(column);
    });
    picture.append(svg("text", { x: 64, y: 116 }, trend.runs[0].started), svg("text", { x: Math.max(230, 60 + step * trend.runs.length), y: 116 }, trend.runs[trend.runs.length - 1].started));
    $("walls").append(picture);
    table("trend", [
      { name: "task", text: true, get: row => row.task, click: row => seek("find-task", row.task) }, { name: "runs before", get: row => row.earlier },
      time("median", "median_s"), time("this run", "newest_s"), { name: "factor", get: row => row.factor, show: row => row.factor === null ? "" : row.factor.toFixed(2) + "x" },
      { name: "seconds per host, oldest run first", text: true, get: row => row.factor, show: row => spark(row.means_s, 180, 22) },
    ], trend.tasks, { mark: row => row.slow });
  }

  // The timeline.
  const gantt = $("gantt"), chart = $("active"), scroll = $("scroll");
  const order = {
    log: (a, b) => a - b,
    name: (a, b) => meta.hosts[a] < meta.hosts[b] ? -1 : 1,
    busy: (a, b) => busyOf[b] - busyOf[a],
    last: (a, b) => lastOf[b] - lastOf[a],
  };
  const busyOf = new Float64Array(meta.hosts.length), lastOf = new Float64Array(meta.hosts.length);
  for (let i = 0; i < count; i++) {
    busyOf[data.host[i]] += data.length[i];
    lastOf[data.host[i]] = Math.max(lastOf[data.host[i]], data.start[i] + data.length[i]);
  }
  function choose() {
    const host = $("find-host").value.toLowerCase(), task = $("find-task").value.toLowerCase();
    view.rows = [];
    for (let h = 0; h < meta.hosts.length; h++) if (firstOf[h + 1] > firstOf[h] && meta.hosts[h].toLowerCase().includes(host)) view.rows.push(h);
    view.rows.sort(order[view.order]);
    view.taskHit = task ? Uint8Array.from(meta.task_names, name => name.toLowerCase().includes(task) ? 1 : 0) : null;
    layout();
  }
  function layout() {
    const tall = view.rows.length * view.height;
    const height = Math.max(40, Math.min(tall + 2, Math.round(window.innerHeight * 0.62)));
    gantt.style.height = height + "px";
    $("space").style.height = Math.max(0, tall + 2 - height) + "px";
    request();
  }
  function fit(canvas) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    return { pen, width, height };
  }
  function step(span, room) {
    const least = span * TICK / Math.max(2, room / 90);
    for (const nice of [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200]) if (nice >= least) return nice;
    return Math.ceil(least / 3600) * 3600;
  }
  function label(value, by) {
    if (by < 1) return value.toFixed(by < 0.01 ? 3 : by < 0.1 ? 2 : 1) + " s";
    const whole = Math.round(value), s = whole % 60, m = Math.floor(whole / 60) % 60, h = Math.floor(whole / 3600);
    return h ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : m ? `${m}:${String(s).padStart(2, "0")}` : s + " s";
  }
  function draw() {
    const before = performance.now();
    drawActive();
    drawGantt();
    window.churtenReport.drawMs = performance.now() - before;
    window.churtenReport.draws++;
  }
  let asked = false;
  function request() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  }
  function drawActive() {
    const { pen, width, height } = fit(chart);
    const room = width - GUTTER, floor = height - 18, scale = room / (view.to - view.from);
    const most = Math.max(active.most, meta.slots || 0, 1), y = value => floor - value / most * (floor - 8);
    const by = step(view.to - view.from, room);
    pen.strokeStyle = colour.line;
    pen.fillStyle = colour.soft;
    pen.textAlign = "center";
    for (let value = Math.ceil(view.from * TICK / by) * by; value <= view.to * TICK; value += by) {
      const x = GUTTER + (value / TICK - view.from) * scale;
      pen.beginPath(); pen.moveTo(x, 4); pen.lineTo(x, floor); pen.stroke();
      pen.fillText(label(value, by), Math.min(width - 20, x), height - 4);
    }
    // Of the changes in one pixel the lowest and the highest are drawn.
    pen.beginPath();
    pen.moveTo(GUTTER, floor);
    let i = upper(active.time, active.n, view.from), x = GUTTER, running = active.running[Math.max(0, i - 1)];
    pen.lineTo(GUTTER, y(running));
    while (i < active.n && active.time[i] <= view.to) {
      const pixel = Math.floor((active.time[i] - view.from) * scale);
      x = GUTTER + pixel;
      let low = running, high = running;
      pen.lineTo(x, y(running));
      while (i < active.n && Math.floor((active.time[i] - view.from) * scale) === pixel && active.time[i] <= view.to) {
        running = active.running[i++];
        low = Math.min(low, running);
        high = Math.max(high, running);
      }
      pen.lineTo(x, y(low)); pen.lineTo(x, y(high)); pen.lineTo(x, y(running));
    }
    pen.lineTo(width, y(running));
    pen.strokeStyle = colour.chart;
    pen.stroke();
    pen.lineTo(width, floor); pen.lineTo(GUTTER, floor);
    pen.fillStyle = colour["chart-fill"];
    pen.fill();
    pen.textAlign = "left";
    pen.fillStyle = colour.ink;
    pen.fillText("tasks running", 4, 16);
    pen.fillStyle = colour.soft;
    pen.fillText(`at most ${active.most}`, 4, 32);
    if (meta.slots) {
      pen.strokeStyle = colour.limit;
      pen.setLineDash([5, 4]);
      const at = Math.round(y(meta.slots)) + 0.5;
      pen.beginPath(); pen.moveTo(GUTTER, at); pen.lineTo(width, at); pen.stroke();
      pen.setLineDash([]);
      pen.fillStyle = colour.limit;
      pen.fillText(`${meta.slots} slots`, 4, 48);
    }
    selection(pen, 0, floor);
  }
  function selection(pen, top, bottom) {
    if (!view.drag) return;
    pen.fillStyle = colour["chart-fill"];
    pen.fillRect(Math.min(view.drag.from, view.drag.to), top, Math.abs(view.drag.to - view.drag.from), bottom - top);
  }
  function upper(list, n, value) {
    let low = 0, high = n;
    while (low < high) { const middle = (low + high) >> 1; if (list[middle] <= value) low = middle + 1; else high = middle; }
    return low;
  }
  const STATUS = ["ok", "changed", "skipped", "failed", "ignored", "unreachable"];
  function drawGantt() {
    const { pen, width, height } = fit(gantt);
    const room = width - GUTTER, scale = room / (view.to - view.from), tall = view.height;
    const top = scroll.scrollTop, first = Math.floor(top / tall), last = Math.min(view.rows.length, Math.ceil((top + height) / tall));
    const lots = {}; // colour -> rectangles; dim ones under "-colour"
    const put = (name, x, y, w, h) => (lots[name] ??= []).push(x, y, w, h);
    const marks = [], pad = tall > 8 ? 1 : 0, chained = [];
    for (let r = first; r < last; r++) {
      const host = view.rows[r], y = r * tall - top + pad, h = Math.max(1, tall - 2 * pad);
      const from = firstOf[host], to = firstOf[host + 1];
      // The first result that may reach into the window.
      let low = from, high = to;
      while (low < high) { const middle = (low + high) >> 1, i = byHost[middle]; if (data.start[i] + data.length[i] < view.from) low = middle + 1; else high = middle; }
      let painted = -1;
      for (let k = low; k < to; k++) {
        const i = byHost[k], start = data.start[i];
        const waited = data.queue[i] === NONE ? 0 : data.queue[i];
        if (start - waited > view.to) break;
        const x = (start - view.from) * scale, end = x + data.length[i] * scale;
        if (end < painted + 0.7 && !inChain[i] && data.status[i] !== 3 && data.status[i] !== 5) continue;
        const dim = view.taskHit && !view.taskHit[data.row[i]] ? "-" : "";
        const wide = Math.max(0.7, end - x);
        if (waited * scale > 0.5 && view.colours === "phase") put(dim + "queue", GUTTER + x - waited * scale, y + h * 0.35, waited * scale, Math.max(1, h * 0.3));
        if (view.colours === "status") put(dim + STATUS[data.status[i]], GUTTER + x, y, wide, h);
        else if (data.controller[i] === NONE) put(dim + "task", GUTTER + x, y, wide, h);
        else {
          const connect = data.connect[i] === NONE ? 0 : data.connect[i] * scale, remote = data.remote[i] === NONE ? 0 : data.remote[i] * scale;
          // Where there is no room for its parts, the longest of them stands for the task.
          if (wide < 2) put(dim + (remote * 2 > wide ? "remote" : connect * 2 > wide ? "connect" : "controller"), GUTTER + x, y, wide, h);
          else {
            put(dim + "controller", GUTTER + x, y, wide, h);
            if (remote > 0.3) put(dim + "remote", GUTTER + x + connect, y, Math.min(remote, Math.max(0, wide - connect)), h);
            if (connect > 0.3) put(dim + "connect", GUTTER + x, y, Math.min(connect, wide), h);
          }
          if (data.status[i] === 3 || data.status[i] === 5) marks.push(GUTTER + x, y, wide, h);
        }
        if (view.chain && inChain[i]) chained.push(GUTTER + x, y, wide, h);
        if (tall >= 13 && wide > 60 && !dim) (lots.names ??= []).push(GUTTER + x, y, wide, i);
        painted = end;
      }
    }
    pen.save();
    pen.beginPath(); pen.rect(GUTTER, 0, room, height); pen.clip();
    // Below before above: what lies inside a task covers it.
    for (const dim of ["-", ""]) for (const name of ["queue", "controller", "task", ...STATUS, "remote", "connect"]) {
      const list = lots[dim + name];
      if (!list) continue;
      pen.globalAlpha = dim ? 0.16 : 1;
      pen.fillStyle = colour[name];
      for (let k = 0; k < list.length; k += 4) pen.fillRect(list[k], list[k + 1], list[k + 2], list[k + 3]);
    }
    pen.globalAlpha = 1;
    pen.fillStyle = colour.failed;
    for (let k = 0; k < marks.length; k += 4) pen.fillRect(marks[k], marks[k + 1] + marks[k + 3] - Math.min(3, marks[k + 3]), Math.max(2, marks[k + 2]), Math.min(3, marks[k + 3]));
    pen.strokeStyle = colour.accent;
    pen.lineWidth = 2;
    for (let k = 0; k < chained.length; k += 4) pen.strokeRect(chained[k], chained[k + 1], chained[k + 2], chained[k + 3]);
    pen.lineWidth = 1;
    const names = lots.names || [];
    pen.textBaseline = "middle";
    for (let k = 0; k < names.length; k += 4) {
      const x = Math.max(GUTTER, names[k]), wide = names[k] + names[k + 2] - x;
      const fitting = Math.floor((wide - 8) / 6.2), text = meta.task_names[data.row[names[k + 3]]];
      if (fitting < 5) continue;
      pen.fillStyle = "#fff";
      pen.fillText(text.length > fitting ? text.slice(0, fitting - 1) + "…" : text, x + 4, names[k + 1] + tall / 2 - 1);
    }
    selection(pen, 0, height);
    pen.restore();
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    const every = Math.max(1, Math.ceil(11 / tall));
    for (let r = first; r < last; r++) {
      if (r % every) continue;
      const text = meta.hosts[view.rows[r]];
      pen.fillStyle = colour.soft;
      pen.fillText(text.length > 22 ? text.slice(0, 21) + "…" : text, 4, r * tall - top + tall / 2);
    }
    if (!view.rows.length) { pen.fillStyle = colour.soft; pen.fillText("no host of this name", GUTTER, 16); }
  }

  function paint() {
    const found = getComputedStyle(document.documentElement);
    for (const name of ["ink", "soft", "line", "accent", "queue", "connect", "remote", "controller", "task", ...STATUS, "chart", "chart-fill", "limit"]) colour[name] = found.getPropertyValue("--" + name).trim();
    request();
  }
  function legend() {
    const measured = data.controller.some(value => value !== NONE), part = data.controller.some(value => value === NONE);
    const names = view.colours === "status" ? STATUS.filter((_, i) => data.status.includes(i)) : [
      ...(data.queue.some(value => value !== NONE) ? ["queue"] : []), ...(measured ? ["connect", "remote", "controller"] : []), ...(part ? ["task"] : []), ...(data.status.includes(3) || data.status.includes(5) ? ["failed"] : [])];
    const words = { queue: "ready, waiting for a slot", connect: "connecting", remote: "remote work", controller: "controller", task: "task (not measured further)" };
    $("legend").replaceChildren(...names.map(name => {
      const one = element("span");
      one.append(element("i", undefined, name), words[name] && view.colours === "phase" ? words[name] : name);
      return one;
    }));
  }
  function zoom(factor, at) {
    const around = at ?? (view.from + view.to) / 2;
    const span = Math.min(total, Math.max(20, (view.to - view.from) * factor));
    show(around - (around - view.from) * span / (view.to - view.from), span);
  }
  function show(from, span) {
    view.from = Math.max(0, Math.min(total - span, from));
    view.to = view.from + span;
    request();
  }
  const timeAt = (canvas, x) => view.from + (x - GUTTER) / (canvas.clientWidth - GUTTER) * (view.to - view.from);

  function resultAt(x, y) {
    const row = Math.floor((y + scroll.scrollTop) / view.height);
    if (x < GUTTER || row < 0 || row >= view.rows.length) return -1;
    const when = timeAt(gantt, x), near = 2 / (gantt.clientWidth - GUTTER) * (view.to - view.from), host = view.rows[row];
    let best = -1;
    for (let k = firstOf[host]; k < firstOf[host + 1]; k++) {
      const i = byHost[k], waited = data.queue[i] === NONE ? 0 : data.queue[i];
      if (data.start[i] - waited - near > when) break;
      if (data.start[i] + data.length[i] + near >= when) best = i;
    }
    return best;
  }
  function tell(event, i) {
    const tip = $("tip");
    if (i < 0) { tip.hidden = true; return; }
    const known = ["queue", "connect", "remote", "controller"].filter(name => data[name][i] !== NONE).map(name => `${name} ${seconds(data[name][i] * TICK, 3)}`);
    const worker = data.worker[i] ? `, worker ${data.worker[i] - 1}` : "";
    tip.textContent = `${meta.task_names[data.row[i]]}\n${meta.hosts[data.host[i]]}: ${STATUS[data.status[i]]}${worker}\nfrom ${seconds(data.start[i] * TICK)} for ${seconds(data.length[i] * TICK, 3)}` + (known.length ? "\n" + known.join(", ") : "") + (inChain[i] ? "\non the critical path" : "");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8) + "px";
    tip.style.top = (event.clientY + 18 + box.height > window.innerHeight ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
  }
  for (const canvas of [gantt, chart]) {
    canvas.addEventListener("pointerdown", event => {
      if (event.button || event.pointerType === "touch") return;
      canvas.setPointerCapture(event.pointerId);
      view.drag = { from: Math.max(GUTTER, event.offsetX), to: Math.max(GUTTER, event.offsetX) };
    });
    canvas.addEventListener("pointermove", event => {
      if (view.drag) { view.drag.to = Math.max(GUTTER, event.offsetX); request(); }
      else if (canvas === gantt) tell(event, resultAt(event.offsetX, event.offsetY));
    });
    canvas.addEventListener("pointerup", () => {
      if (!view.drag) return;
      const [one, two] = [view.drag.from, view.drag.to].sort((a, b) => a - b);
      view.drag = null;
      if (two - one > 4) { const from = timeAt(canvas, one), to = timeAt(canvas, two); show(from, Math.max(20, to - from)); } else request();
    });
    canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
    canvas.addEventListener("dblclick", () => show(0, total));
    canvas.addEventListener("wheel", event => {
      if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(canvas, event.offsetX)); }
      else if (event.shiftKey || event.deltaX) { event.preventDefault(); show(view.from + (event.deltaX || event.deltaY) / 600 * (view.to - view.from), view.to - view.from); }
    }, { passive: false });
  }
  scroll.addEventListener("scroll", () => { $("tip").hidden = true; request(); });
  scroll.addEventListener("keydown", event => {
    const span = view.to - view.from;
    const keys = { ArrowLeft: () => show(view.from - span / 8, span), ArrowRight: () => show(view.from + span / 8, span), "+": () => zoom(0.7), "-": () => zoom(1.4), 0: () => show(0, total) };
    if (keys[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); keys[event.key](); }
  });
  $("in").onclick = () => zoom(0.6);
  $("out").onclick = () => zoom(1.7);
  $("all").onclick = () => show(0, total);
  $("find-host").oninput = choose;
  $("find-task").oninput = choose;
  $("order").onchange = event => { view.order = event.target.value; choose(); };
  $("colours").onchange = event => { view.colours = event.target.value; legend(); request(); };
  $("height").oninput = event => { view.height = Number(event.target.value); layout(); };
  $("chain").onchange = event => { view.chain = event.target.checked; request(); };
  $("theme").onclick = event => {
    const root = document.documentElement, next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    event.target.textContent = "Theme: " + (next || "auto");
    paint();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  new ResizeObserver(layout).observe(document.body);

  window.churtenReport = { draws: 0, drawMs: 0, view, redraw: draw };
  view.height = meta.hosts.length > 120 ? 6 : 14;
  $("height").value = view.height;
  legend();
  paint();
  choose();
  draw();
  window.churtenReport.readyMs = performance.now() - began;
})();
