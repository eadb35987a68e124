"use strict";
const $ = id => document.getElementById(id);
const ROW = 44, PAGE = 100, BLOCK = 16, AHEAD = 3 * BLOCK, KEPT = 240e6;  // steps, and bytes of decoded pictures
const exported = window.EXPORTED || null;
let dataset, episode = null, step = 0, wanted = 0, playing = false, plots = {}, total = 0;
const pages = new Map();

function make(tag, text = "", name = "") {
  const found = document.createElement(tag);
  if (text !== "") found.textContent = text;
  if (name) found.className = name;
  return found;
}
function problem(text) { $("problem").textContent = text; $("problem").hidden = !text; }
async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// ---- the list: only the rows that are seen are asked for and made ----------------------------------------
let asked = 0;
function renewList() { pages.clear(); asked++; $("list").scrollTop = 0; total = 0; showRows(); }
async function page(number) {
  if (pages.has(number)) return pages.get(number);
  pages.set(number, null);
  const turn = asked, query = new URLSearchParams({ first: number * PAGE, count: PAGE, words: $("words").value, only: $("only").value });
  try {
    const found = await get("data/episodes?" + query);
    if (turn !== asked) return null;
    pages.set(number, found.rows); total = found.total;
    $("total").textContent = `${total} of ${dataset.episodes} episodes`;
    $("rows").style.height = total * ROW + "px";
    showRows();
  } catch (error) { problem(error.message); pages.delete(number); }
  return null;
}
function showRows() {
  const from = Math.max(0, Math.floor($("list").scrollTop / ROW) - 5), to = from + Math.ceil($("list").clientHeight / ROW) + 10;
  const rows = [];
  for (let k = from; k < Math.max(to, 1) && (k < total || k === 0); k++) {
    const found = pages.get(Math.floor(k / PAGE));
    if (found === undefined) page(Math.floor(k / PAGE));
    const row = found && found[k % PAGE];
    if (row) rows.push(rowOf(row, k));
  }
  $("rows").replaceChildren(...rows);
}
function rowOf(row, at) {
  const box = make("div", "", "row" + (episode && row.episode === episode.episode ? " chosen" : ""));
  box.style.top = at * ROW + "px"; box.dataset.episode = row.episode;
  box.append(make("span", row.instruction || "(no instruction)", "words"));
  const line = make("small", `#${row.episode} · ${row.length} steps · `);
  line.append(successOf(row.success));
  for (const severity of ["error", "warning"]) {
    const count = row.found.filter(f => f === severity).length;
    if (count) line.append(" · ", make("span", `${count} ${severity}${count > 1 ? "s" : ""}`, severity));
  }
  box.append(line);
  box.onclick = () => open(row.episode);
  return box;
}
function successOf(value) { return make("span", value === null ? "not judged" : value ? "success" : "failure", value === null ? "" : value ? "yes" : "no"); }
function neighbour(by) {  // the next row of the list as it is filtered
  const rows = [...pages.entries()].sort((a, b) => a[0] - b[0]).flatMap(entry => entry[1] || []);
  const at = rows.findIndex(row => episode && row.episode === episode.episode), row = rows[at < 0 ? 0 : at + by];
  if (!row) return;
  const place = (at < 0 ? 0 : at + by) * ROW, list = $("list");
  if (place < list.scrollTop || place > list.scrollTop + list.clientHeight - ROW) list.scrollTop = place - list.clientHeight / 2;
  open(row.episode);
}

// ---- an episode -----------------------------------------------------------------------------------------
let opening = 0;
async function open(number, at = 0) {
  const turn = ++opening;
  stop(); problem("");
  let found;
  try { found = exported ? exported.episode : await get("data/episode/" + number); }
  catch (error) { problem(`episode ${number}: ${error.message}`); return; }
  if (turn !== opening) return;
  episode = found; forget(); history.replaceState(null, "", "#" + number);
  episode.repeatedAt = new Set(episode.repeated);
  episode.clock = clock(episode.time);
  $("title").replaceChildren(`Episode ${episode.episode}: ${episode.instruction || "(no instruction)"}`);
  $("task").replaceChildren(`${episode.length} steps, ${seconds(episode.time.at(-1))} · `, successOf(episode.success),
    episode.intervened.length ? ` · ${episode.intervened.length} steps by a human (shaded)` : "",
    episode.repeated.length ? ` · ${episode.repeated.length} repeated pictures` : "");
  $("step").max = episode.length - 1;
  showFindings(); showCurves(); await seek(at);
  if (!exported) showRows();
}
// When each step is due, seconds: the recorded times, or the nominal ones where those do not run forward.
function clock(times) {
  const good = times.every((t, k) => t !== null && (!k || t > times[k - 1]));
  return good ? times : times.map((_, k) => k / dataset.fps);
}
const seconds = value => value === null || value === undefined ? "" : value.toFixed(2) + " s";

function showFindings() {
  $("found").replaceChildren(...episode.findings.map(f => {
    const box = make("div", "", f.severity);
    box.append(make("b", f.severity + " "), f.message);
    if (f.step !== null) { const go = make("span", `step ${f.step}`, "go"); go.onclick = () => { stop(); seek(f.step); }; box.append(" ", go); }
    box.append(make("small", f.remedy));
    if (f.command) box.append(make("small", f.command));
    return box;
  }));
}
function showCurves() {
  const marks = episode.findings.filter(f => f.step !== null), length = episode.length, shaded = episode.intervened;
  const named = (vector, values) => values.map((row, d) => ({ name: dataset.names[vector][d] || String(d), values: row }));
  const lines = named("action", episode.action);
  if (episode.other) lines.push(...named("action", episode.other.values).map(line => ({ ...line, dashed: true })));
  $("curves").replaceChildren(); plots = {};
  if (episode.state) { plots.state = new Plot($("curves"), "state", seek); plots.state.show(named("state", episode.state), length, { shaded, marks }); }
  const title = episode.other ? `action (${episode.label}; dashed: ${episode.other.name})` : "action";
  plots.action = new Plot($("curves"), title, seek);
  plots.action.show(lines, length, { shaded, marks });
  const gaps = episode.time.map((t, k) => k && t !== null && episode.time[k - 1] !== null ? (t - episode.time[k - 1]) * 1000 : null);
  const late = Object.entries(episode.cameras).map(([name, times]) => ({
    name: `${name}: age of the picture`, values: times.map((t, k) => t === null ? null : (episode.time[k] - t) * 1000) }));
  plots.times = new Plot($("curves"), "milliseconds since the step before (dotted: nominal)", seek);
  plots.times.show([{ name: "since the step before", values: gaps }, ...late], length, { marks, level: 1000 / dataset.fps });
  if (episode.reward.some(r => r)) { plots.reward = new Plot($("curves"), "reward", seek); plots.reward.show([{ name: "reward", values: episode.reward }], length); }
}

// ---- pictures: all cameras show the same step, or none is changed ------------------------------------------
// A block of pictures comes in one answer.
const blocks = new Map(), pictures = new Map();
let bytes = 0;
function forget() { blocks.clear(); pictures.clear(); bytes = 0; }
async function load(name) {
  const answer = await fetch(`pictures/${name}`);
  if (!answer.ok) throw new Error(await answer.text());
  const content = await answer.arrayBuffer(), head = new DataView(content), found = [];
  for (let at = 0; at < content.byteLength;) {  // length, JPEG, length, JPEG, ...
    const size = head.getUint32(at); found.push(new Blob([new Uint8Array(content, at + 4, size)], { type: "image/jpeg" })); at += 4 + size;
  }
  return found;
}
function block(camera, at) {
  const name = `${episode.episode}/${camera}/${Math.floor(at / BLOCK)}`;
  if (!blocks.has(name)) blocks.set(name, load(name).catch(error => { problem(error.message); return []; }));
  return blocks.get(name);
}
function loaded(address) {
  return new Promise(done => {
    const image = new Image();
    image.onload = () => done(image); image.onerror = () => done(null);
    image.src = address;
  });
}
async function cut(camera, at) {  // out of its block
  const blob = (await block(camera, at))[at % BLOCK];
  if (!blob) return null;
  const address = URL.createObjectURL(blob), image = await loaded(address);
  URL.revokeObjectURL(address);
  return image;
}
function picture(camera, at) {
  const key = `${camera}/${at}`;
  let found = pictures.get(key);
  if (!found) {
    // An exported page has no server, and a file cannot fetch another.
    found = exported ? loaded(`picture/${episode.episode}/${key}.jpg`) : cut(camera, at);
    pictures.set(key, found);
    bytes += 4 * dataset.cameras[camera].width * dataset.cameras[camera].height;
    while (bytes > KEPT && pictures.size > 4 * dataset.cameras.length) {
      const old = pictures.keys().next().value, shape = dataset.cameras[old.split("/")[0]];
      pictures.delete(old); bytes -= 4 * shape.width * shape.height;
    }
  }
  return found;
}
function ahead(from) {
  if (exported) { for (let at = from; at < Math.min(from + BLOCK, episode.length); at++) dataset.cameras.forEach((_, c) => picture(c, at)); return; }
  for (let at = from; at < Math.min(from + AHEAD, episode.length); at += BLOCK) dataset.cameras.forEach((_, c) => block(c, at));
}
async function seek(to) {
  wanted = Math.max(0, Math.min(episode.length - 1, to));
  const mine = wanted, owner = episode, shown = await Promise.all(dataset.cameras.map((_, c) => picture(c, mine)));
  if (owner !== episode || mine !== wanted) return false;
  show(mine, shown);
  ahead(mine + 1);
  return true;
}
function show(at, shown) {
  step = at;
  $("step").value = step;
  $("where").textContent = `step ${step} of ${episode.length - 1} · ${seconds(episode.time[step])}`;
  shown.forEach((image, c) => {
    const canvas = $("camera" + c), pen = canvas.getContext("2d");
    if (image) pen.drawImage(image, 0, 0); else pen.clearRect(0, 0, canvas.width, canvas.height);
    const again = episode.repeatedAt.has(step) ? " · repeated" : "";
    canvas.nextElementSibling.textContent = dataset.cameras[c].name + (image ? again : " · cannot be read");
  });
  const task = (episode.tasks || []).filter(t => t.step <= step).at(-1);
  if (task) $("title").textContent = `Episode ${episode.episode}: ${task.text}`;
  Object.values(plots).forEach(plot => plot.at(step));
  document.body.dataset.step = step; document.body.dataset.episode = episode.episode;
}

// ---- playing: a clock that runs at the recorded times leads. A machine that is too slow for all pictures shows fewer, as
// video players do; where none comes at all the clock waits. ------------------------------------------------------------
let turn = 0;
function stop() { playing = false; turn++; $("play").textContent = "▶ play"; }
const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));
async function play() {
  if (playing) { stop(); return; }
  if (episode.length < 2) return;
  const mine = ++turn, times = episode.clock;
  playing = true; $("play").textContent = "❚❚ stop";
  if (step >= episode.length - 1 && !await seek(0)) return;
  const began = performance.now(), from = step;
  let now = began, at = times[step];
  while (playing && mine === turn && step < episode.length - 1) {
    const speed = Number($("speed").value);
    await pause(Math.min(Math.max((times[step + 1] - at) / speed * 1000, 4), 200));
    const later = performance.now();
    at += Math.min(later - now, 3000) / 1000 * speed; now = later;  // a page that slept goes on where it was
    let next = step;
    while (next < episode.length - 1 && times[next + 1] <= at) next++;
    if (next === step || mine !== turn) continue;
    wanted = next;
    const asked = performance.now(), leap = next - step;
    const shown = await Promise.all(dataset.cameras.map((_, c) => picture(c, next)));
    if (mine !== turn) return;
    if (wanted !== next) { stop(); return; }  // somebody went elsewhere
    for (let k = 1; k <= 3 && next + k * leap < episode.length; k++) dataset.cameras.forEach((_, c) => picture(c, next + k * leap));
    show(next, shown);
    ahead(next + 1);
    if (performance.now() - asked > 1000) { now = performance.now(); at = times[next]; }  // nothing to show: the clock waits
  }
  document.body.dataset.played = `${from}-${step} in ${Math.round(performance.now() - began)} ms`;
  if (mine === turn) stop();
}

// ---- the rest -------------------------------------------------------------------------------------------
async function watchCheck() {
  const found = await get("data/findings");
  if (!found.done) { $("checked").textContent = `checking: ${found.progress[0]} of ${found.progress[1]}`; setTimeout(watchCheck, 700); return; }
  const words = Object.entries(found.counts).filter(entry => entry[1]).map(([name, n]) => `${n} ${name}${n > 1 ? "s" : ""}`);
  $("checked").textContent = found.problem || (Object.keys(found.counts).length ? "check: " + (words.join(", ") || "nothing found") : "");
  $("checked").title = found.general.map(f => `${f.severity}: ${f.message}`).join("\n");
  document.body.dataset.checked = "yes";
  pages.clear(); asked++; showRows();
  if (episode) { episode.findings = (await get("data/episode/" + episode.episode)).findings; showFindings(); showCurves(); if (!playing) seek(wanted); }
}
function key(event) {
  if (event.target.matches("input[type=search], select")) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = event.shiftKey ? 10 : 1, speed = $("speed");
  const keys = {
    " ": play, ArrowLeft: () => { stop(); seek(wanted - by); }, ArrowRight: () => { stop(); seek(wanted + by); },
    Home: () => seek(0), End: () => seek(episode.length - 1), "/": () => $("words").focus(),
    ArrowUp: () => exported || neighbour(-1), ArrowDown: () => exported || neighbour(1),
    "+": () => { speed.selectedIndex = Math.min(speed.selectedIndex + 1, speed.length - 1); },
    "-": () => { speed.selectedIndex = Math.max(speed.selectedIndex - 1, 0); },
  };
  if (keys[event.key] && episode) { event.preventDefault(); keys[event.key](); }
}
async function begin() {
  dataset = exported ? exported.dataset : await get("data/dataset");
  document.title = dataset.name + " · vla-agents data view";
  $("name").textContent = dataset.name;
  $("facts").textContent = `${dataset.format} · ${dataset.embodiment} · ${dataset.episodes} episodes · ${dataset.steps.toLocaleString("en")} steps · ${dataset.fps} Hz`;
  $("facts").title = dataset.notes.join("\n");
  dataset.cameras.forEach((camera, c) => {
    const figure = make("figure"), canvas = make("canvas");
    canvas.id = "camera" + c; canvas.width = camera.width; canvas.height = camera.height;
    figure.style.flexGrow = camera.width / camera.height; canvas.style.aspectRatio = `${camera.width} / ${camera.height}`;
    figure.append(canvas, make("figcaption", camera.name)); $("cameras").append(figure);
  });
  $("step").oninput = () => { stop(); seek(Number($("step").value)); };
  $("first").onclick = () => { stop(); seek(0); };
  $("back").onclick = () => { stop(); seek(wanted - 1); };
  $("on").onclick = () => { stop(); seek(wanted + 1); };
  $("play").onclick = play;
  $("list").onscroll = showRows; $("only").onchange = renewList;
  let typing; $("words").oninput = () => { clearTimeout(typing); typing = setTimeout(renewList, 200); };
  document.addEventListener("keydown", key); window.addEventListener("resize", showRows);
  const hash = location.hash.slice(1).split(":"), [number, at] = hash.map(Number), plays = hash[2] === "play";
  if (exported) { $("side").hidden = true; $("side").style.display = "none"; await open(exported.episode.episode, at || 0); if (plays) play(); return; }
  showRows();
  if (dataset.episodes) await open(number < dataset.episodes ? number : 0, at || 0);
  if (plays) play();
  watchCheck();
}
begin().catch(error => problem(error.message));
