// The page of a plate: the map and the gallery show the same drops, of which one has the focus and several are chosen.

import { all, find } from "./dom.js";
import * as keys from "./keys.js";
import * as live from "./live.js";
import * as queue from "./queue.js";

const LETTERS = JSON.parse(find(".plate").dataset.looks);
const mayLabel = "mayLabel" in document.body.dataset;
const chosen = new Set();
const inspection = Number(new URLSearchParams(find(".map td a")?.search).get("inspection"));

let cells = new Map();
let tiles = new Map();
let focus = null;
let anchor = null;
let ticking = false;

function read() {
  cells = new Map(all(".map td[data-key]").map((cell) => [cell.dataset.key, cell]));
  tiles = new Map(all(".tile").map((tile) => [tile.dataset.key, tile]));
  if (!cells.has(focus)) focus = tiles.keys().next().value ?? cells.keys().next().value ?? null;
  for (const drop of chosen) if (!tiles.has(drop)) chosen.delete(drop);
  for (const [drop, cell] of cells) {
    find("a", cell).tabIndex = drop === focus ? 0 : -1;
    if (mayLabel) cell.setAttribute("aria-selected", chosen.has(drop));
  }
  for (const [drop, tile] of tiles) paintChoice(drop, tile);
  for (const [place, word] of queue.unsaved()) {
    const [drop, at] = place.split(":");
    if (Number(at) === inspection) paint(drop, word);
  }
  count();
}

function paintChoice(drop, tile) {
  const is = chosen.has(drop);
  tile.classList.toggle("chosen", is);
  cells.get(drop)?.classList.toggle("chosen", is);
  cells.get(drop)?.setAttribute("aria-selected", is);
  const tick = find(".tick", tile);
  if (tick) tick.checked = is;
}

/** Show a label on the map and in the gallery before the server has it. */
function paint(drop, word) {
  const [letter, style] = LETTERS[word] ?? ["?", "waiting"];
  for (const part of [cells.get(drop), tiles.get(drop)]) {
    if (!part) continue;
    live.touched(part);
    part.classList.add("unsaved");
    const spot = find(".swatch", part) ?? part;
    if ((new URLSearchParams(location.search).get("by") ?? "now") === "now") {
      spot.classList.remove("hit", "crystals", "precipitate", "clear", "other", "waiting", "failed", "light");
      spot.classList.add(style);
      cells.get(drop)?.classList.toggle("by-person", Boolean(word));
      (find("a", spot) ?? spot).textContent = letter;
    }
  }
}

function setFocus(drop, { show = true } = {}) {
  if (!cells.has(drop)) return;
  const last = cells.get(focus);
  if (last) find("a", last).tabIndex = -1;
  tiles.get(focus)?.classList.remove("focused");
  focus = drop;
  const link = find("a", cells.get(drop));
  link.tabIndex = 0;
  link.focus({ preventScroll: false });
  tiles.get(drop)?.classList.add("focused");
  if (show) tiles.get(drop)?.scrollIntoView({ block: "nearest" });
}

/** Move on the map by places as they lie; empty ones are passed over. */
function move(across, down) {
  const rows = all(".map tbody tr").map((row) => all("td", row));
  const at = cells.get(focus);
  let y = rows.findIndex((row) => row.includes(at));
  let x = rows[y]?.indexOf(at) ?? -1;
  for (;;) {
    x += across;
    y += down;
    const cell = rows[y]?.[x];
    if (!cell) return;
    if (cell.dataset.key) {
      setFocus(cell.dataset.key);
      return;
    }
  }
}

function moveTo(drop, event, across, down) {
  if (event.shiftKey && mayLabel) choose(focus, true);
  if (drop) setFocus(drop);
  else move(across, down);
  if (event.shiftKey && mayLabel) choose(focus, true);
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onMap(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || !event.target.closest("td[data-key]")) return;
  const ordered = Array.from(cells.keys());
  if (event.key in MOVES) moveTo(null, event, ...MOVES[event.key]);
  else if (event.key === "Home") moveTo(ordered[0], event);
  else if (event.key === "End") moveTo(ordered.at(-1), event);
  else if (event.key === " " && mayLabel) choose(focus, !chosen.has(focus));
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function choose(drop, is) {
  if (!tiles.has(drop)) return;
  if (is) chosen.add(drop);
  else chosen.delete(drop);
  paintChoice(drop, tiles.get(drop));
  anchor = drop;
  count();
}

function chooseTo(drop) {
  const ordered = Array.from(tiles.keys());
  const [from, to] = [ordered.indexOf(anchor ?? focus), ordered.indexOf(drop)].sort((a, b) => a - b);
  for (const each of ordered.slice(Math.max(0, from), to + 1)) choose(each, true);
}

function chooseAll() {
  const every = chosen.size < tiles.size;
  for (const drop of tiles.keys()) choose(drop, every);
}

function chooseNone() {
  for (const drop of [...chosen]) choose(drop, false);
}

function count() {
  const bar = find("#chosen");
  if (!bar) return;
  bar.hidden = chosen.size === 0;
  find("[data-do=compare]", bar).disabled = chosen.size !== 2;
  find("#chosen-count").textContent = `${chosen.size} ${chosen.size === 1 ? "drop" : "drops"} chosen`;
}

function pointed(event) {
  const part = event.target.closest("td[data-key], .tile[data-key]");
  if (!part || !mayLabel) return;
  const drop = part.dataset.key;
  const tick = event.target.closest(".tick");
  if (tick) {
    if (event.shiftKey) chooseTo(drop);
    else choose(drop, tick.checked);
  } else if (event.shiftKey || event.ctrlKey || event.metaKey || ticking) {
    event.preventDefault();
    if (event.shiftKey) chooseTo(drop);
    else choose(drop, !chosen.has(drop));
  }
}

function ask(number, word) {
  const question = find("#question");
  find("#question-text").textContent = `Label ${number} drops ${word}?`;
  question.returnValue = "";
  question.showModal();
  return new Promise((resolve) => {
    const closed = () => {
      // The end of the question before may be told while this one stands already.
      if (question.open) return;
      question.removeEventListener("close", closed);
      resolve(question.returnValue === "yes");
    };
    question.addEventListener("close", closed);
  });
}

async function label(word) {
  const drops = chosen.size ? Array.from(tiles.keys()).filter((drop) => chosen.has(drop)) : [focus];
  if (!drops[0] || (drops.length > 1 && !(await ask(drops.length, word)))) return;
  const many = drops.length > 1 ? `${drops.length} drops` : nameOf(drops[0]);
  queue.label(drops.map((drop) => ({ drop: Number(drop), inspection, label: word })), `${many} ${word}`, location.href);
  for (const drop of drops) paint(drop, word);
  const next = Array.from(tiles.keys())[Array.from(tiles.keys()).indexOf(drops[0]) + 1];
  if (chosen.size) chooseNone();
  else if (next) setFocus(next);
}

/** Show the two drops that are chosen side by side. */
function compare() {
  if (chosen.size !== 2) return;
  const [first, second] = Array.from(tiles.keys()).filter((drop) => chosen.has(drop));
  location.assign(`${find("a", tiles.get(first)).href}&compare=${second}&at=${inspection}`);
}

const nameOf = (drop) => tiles.get(drop)?.dataset.name ?? "A drop";

function undo() {
  const act = queue.undo();
  if (!act) return;
  const its = String(act.labels?.[0]?.drop ?? "");
  const here = act.labels?.[0]?.inspection === inspection;
  if (cells.has(its) && here) setFocus(its);
  else location.assign(act.address);
}

function tick() {
  ticking = !ticking;
  find("[data-do=tick]").setAttribute("aria-pressed", ticking);
  document.body.classList.toggle("ticking", ticking);
}

function hover(event) {
  const drop = event.target.closest?.("[data-key]")?.dataset.key;
  for (const part of all(".near")) part.classList.remove("near");
  for (const part of [cells.get(drop), tiles.get(drop)]) part?.classList.add("near");
}

export async function start() {
  read();
  find(".map").addEventListener("keydown", onMap);
  find(".plate").addEventListener("click", pointed);
  find(".plate").addEventListener("mouseover", hover);
  find("#choice").addEventListener("change", (event) => event.currentTarget.submit());
  document.addEventListener("refreshed", read);
  document.addEventListener("saved", () => live.soon(300));
  document.addEventListener("refused", () => live.soon(0));
  keys.on({ next: () => move(1, 0), previous: () => move(-1, 0), earlier: () => move(0, -1), later: () => move(0, 1) });
  keys.on({ first: () => setFocus(cells.keys().next().value), last: () => setFocus(Array.from(cells.keys()).at(-1)) });
  if (!mayLabel) return;
  const words = { crystals: "Crystals", precipitate: "Precipitate", clear: "Clear", other: "Other" };
  for (const [action, word] of Object.entries(words)) keys.on({ [action]: () => label(word) });
  keys.on({ choose: chooseAll, none: chooseNone, compare, undo, tick });
}
