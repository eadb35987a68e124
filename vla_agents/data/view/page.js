"use strict";
const $ = id => document.getElementById(id);
const ROW = 44, PAGE = 100, AHEAD = 32, KEPT = 1500;
const exported = window.EXPORTED || null;
let dataset, episode = null, step = 0, wanted = 0, playing = false, plots = {}, total = 0;
const pages = new Map(), pictures = new Map();

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
  episode = found; pictures.clear(); location.hash = number;
  $("title").replaceChildren(`Episode ${episode.episode}: ${episode.instruction || "(no instruction)"}`);
  $("task").replaceChildren(`${episode.length} steps, ${seconds(episode.time.at(-1))} · `, successOf(episode.success),
    episode.intervened.length ? ` · ${episode.intervened.length} steps by a human (shaded)` : "",
    episode.repeated.length ? ` · ${episode.repeated.length} repeated pictures` : "");
  $("step").max = episode.length - 1;
  showFindings(); showCurves(); seek(at);
  if (!exported) showRows();
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
function picture(camera, at) {
  const key = `${episode.episode}/${camera}/${at}`;
  let found = pictures.get(key);
  if (!found) {
    found = new Image();
    found.ready = new Promise(done => { found.onload = () => done(true); found.onerror = () => done(false); });
    found.src = `picture/${key}.jpg`;
    pictures.set(key, found);
    if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  }
  return found;
}
function ahead(from) {
  for (let at = from; at < Math.min(from + AHEAD, episode.length); at++) dataset.cameras.forEach((_, c) => picture(c, at));
}
async function seek(to) {
  wanted = Math.max(0, Math.min(episode.length - 1, to));
  const mine = wanted, owner = episode, shown = dataset.cameras.map((_, c) => picture(c, mine));
  const good = await Promise.all(shown.map(image => image.ready));
  if (owner !== episode || mine !== wanted) return;
  step = mine;
  $("step").value = step;
  $("where").textContent = `step ${step} of ${episode.length - 1} · ${seconds(episode.time[step])}`;
  shown.forEach((image, c) => {
    const canvas = $("camera" + c), pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (good[c]) pen.drawImage(image, 0, 0);
    const again = episode.repeated.includes(step) ? " · repeated" : "";
    canvas.nextElementSibling.textContent = dataset.cameras[c].name + (good[c] ? again : " · cannot be read");
  });
  const task = (episode.tasks || []).filter(t => t.step <= step).at(-1);
  if (task) $("title").textContent = `Episode ${episode.episode}: ${task.text}`;
  Object.values(plots).forEach(plot => plot.at(step));
  document.body.dataset.step = step; document.body.dataset.episode = episode.episode;
  ahead(step + 1);
}

// ---- playing: by the recorded times; waits where pictures are not there yet ---------------------------------
function stop() { playing = false; $("play").textContent = "▶ play"; }
async function play() {
  if (playing) { stop(); return; }
  playing = true; $("play").textContent = "❚❚ stop";
  if (step >= episode.length - 1) await seek(0);
  while (playing) {
    if (step >= episode.length - 1) { stop(); break; }
    const since = performance.now(), before = step;
    await seek(before + 1);
    if (step !== before + 1) continue;  // somebody went elsewhere
    const rest = 1000 / dataset.fps / Number($("speed").value) - (performance.now() - since);
    await new Promise(done => setTimeout(done, Math.max(rest, 0)));
  }
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
  if (episode) { episode.findings = (await get("data/episode/" + episode.episode)).findings; showFindings(); showCurves(); seek(wanted); }
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
    canvas.style.height = Math.max(Math.min(camera.height, 320), 200) + "px";
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
  const [number, at] = location.hash.slice(1).split(":").map(Number);
  if (exported) { $("side").hidden = true; $("side").style.display = "none"; await open(exported.episode.episode, at || 0); return; }
  showRows();
  if (dataset.episodes) await open(number < dataset.episodes ? number : 0, at || 0);
  watchCheck();
}
begin().catch(error => problem(error.message));
