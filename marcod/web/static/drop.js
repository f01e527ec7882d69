// The page of a drop: from drop to drop without loading a page, in the order that one came from.

import { all, element, find } from "./dom.js";
import * as keys from "./keys.js";
import * as live from "./live.js";
import * as queue from "./queue.js";
import { Viewer } from "./viewer.js";

const AHEAD = 3;
const SETTLED_MS = 140;
const WORDS = { crystals: "Crystals", precipitate: "Precipitate", clear: "Clear", other: "Other" };

const mayLabel = "mayLabel" in document.body.dataset;
const place = find("#drop");
const viewer = new Viewer(find("#viewer"));
const loaded = new Map();
const own = new Map();

let list = [];
let at = 0;
let shown = null;
let asked = null;
let timer = 0;

/** State of the page that its address has besides the list: what is beside, the light, the heat map. */
const view = new URLSearchParams(location.search);

function current() {
  return list[at];
}

/** Load images ahead, and keep the last few decoded. */
function load(address) {
  if (!address) return null;
  let image = loaded.get(address);
  if (!image) {
    image = new Image();
    image.draggable = false;
    image.decoding = "async";
    image.src = address;
    image.ready = image.decode().catch(() => loaded.delete(address));
    loaded.set(address, image);
    if (loaded.size > 24) loaded.delete(loaded.keys().next().value);
  }
  return image;
}

function loadAround() {
  if (document.hidden) return;
  for (const entry of [...list.slice(at + 1, at + 1 + AHEAD), list[at - 1]]) if (entry) load(entry.view);
}

function addressOf(entry) {
  const [path, query] = entry.address.split("?");
  const all_ = new URLSearchParams(query);
  for (const name of ["compare", "at", "light", "heat", "beside"]) if (view.has(name)) all_.set(name, view.get(name));
  return `${path}?${all_}`;
}

function saidOf(entry) {
  const key = `${entry.drop}:${entry.inspection}`;
  return own.has(key) ? own.get(key) : entry.mine;
}

/** Show a drop of the list. */
async function go(to) {
  if (to < 0 || to >= list.length) return;
  at = to;
  const entry = current();
  history.replaceState(null, "", addressOf(entry));
  const [, plate, name] = /^(?:(.*) )?(\S+)$/.exec(entry.name);
  find("#name").textContent = name;
  if (plate) find("#plate").textContent = plate;
  find("#place").textContent = `${at + 1} of ${list.length}`;
  document.title = `${find("#plate").textContent} ${name} \u00b7 marcod`;
  showVerdict();
  links();
  const image = load(entry.view);
  // A drop that is kept in view stays there.
  const kept = view.has("compare") && shown?.beside ? [besidePane()] : [];
  viewer.show([{ image, original: null, name: entry.name }, ...kept]);
  settleSoon();
  loadAround();
  await image?.ready;
  if (current() === entry) {
    requestAnimationFrame(() => document.dispatchEvent(new CustomEvent("shown", { detail: { drop: entry.drop } })));
  }
}

const NONE = { audit: "asked in an audit", absent: "no image", light: "another light", failed: "failed" };

function wordsOf(entry, word, mine) {
  if (mine) return `${word} \u00b7 you`;
  const hit = (entry.hit ?? entry.style === "hit") && word !== "Crystals" ? "Hit \u00b7 " : "";
  if (entry.p === null) return hit + word;
  const p = entry.p.toFixed(3);
  return hit + (word === "Crystals" ? `${word} ${p}` : `${word} \u00b7 crystals ${p}`);
}

function showVerdict() {
  const entry = current();
  const mine = saidOf(entry);
  const chip = find("#verdict");
  const word = mine ?? entry.label;
  chip.className = `verdict ${word ? word.toLowerCase() : ""}`;
  chip.textContent = word ? wordsOf(entry, word, mine) : NONE[entry.state] ?? "not scored yet";
  for (const [action, each] of Object.entries(WORDS)) {
    find(`.tools [data-do=${action}]`)?.setAttribute("aria-pressed", each === mine);
  }
}

function links() {
  for (const [action, entry] of [["previous", list[at - 1]], ["next", list[at + 1]]]) {
    const link = find(`.moves [data-do=${action}]`);
    link.toggleAttribute("aria-disabled", !entry);
    if (entry) {
      link.href = addressOf(entry);
      link.removeAttribute("aria-disabled");
    } else {
      link.removeAttribute("href");
      link.setAttribute("aria-disabled", "true");
    }
  }
}

/** Fetch what the panel says, once a person stays with a drop. */
function settleSoon() {
  clearTimeout(timer);
  asked?.abort();
  const { drop, inspection: its } = current();
  // What stands there is of another drop, so it is not to be seen.
  if (shown?.drop !== drop || shown?.inspection !== its) find("#panel").setAttribute("aria-busy", "true");
  timer = setTimeout(settle, SETTLED_MS);
}

async function settle() {
  const entry = current();
  if (!entry) return;
  asked = new AbortController();
  const address = `${addressOf(entry)}&part=panel`;
  try {
    const answer = await fetch(address, { signal: asked.signal });
    if (!answer.ok || answer.redirected || current() !== entry) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (current() !== entry) return;
    for (const part of ["#strip", "#panel"]) find(part).replaceWith(find(part, fresh));
    readPanel();
  } catch (error) {
    if (error.name !== "AbortError") find("#panel").setAttribute("aria-busy", "true");
  }
}

/** Take what the panel says of the drop: its images in every light, and what is beside it. */
function readPanel() {
  shown = JSON.parse(find("#panel").dataset.shown);
  const pressed = { follow: shown.followed, harvested: shown.harvested };
  for (const [action, is] of Object.entries(pressed)) find(`[data-do=${action}]`)?.setAttribute("aria-pressed", is);
  for (const button of all("[data-beside]")) button.addEventListener("click", () => beside({ at: button.dataset.beside }));
  find("[data-do=light]").disabled = shown.look.images.length < 2;
  find("[data-do=compare]").disabled = !shown.beside && shown.looks.length < 2 && shown.look.images.length < 2;
  find("#plate").href = shown.plate;
  if (shown.drop === current()?.drop) {
    Object.assign(current(), shown.said);
    showVerdict();
  }
  const now = find("#strip .now");
  now?.parentElement.scrollTo({ left: now.offsetLeft - 100 });
  showImages();
}

function pane(photograph, name, um = shown.um) {
  const image = load(photograph.view);
  return { image, original: photograph.original, heat: photograph.heat, name, um };
}

const nameAt = (name, look) => `${name}, inspection ${look.name}${look.days ? ` (+${Math.round(look.days)} d)` : ""}`;

function inLight(look) {
  return look.images.find((each) => each.modality === view.get("light")) ?? look.images[0];
}

function besideName() {
  return (shown.besidePlate === shown.plateName ? "" : `${shown.besidePlate} `) + shown.besideDrop.name;
}

function besidePane() {
  return pane(inLight(shown.beside), nameAt(besideName(), shown.beside), shown.besideUm);
}

function showImages() {
  const photograph = inLight(shown.look);
  const far = shown.beside && shown.besidePlate !== shown.plateName;
  const panes = [pane(photograph, nameAt((far ? `${shown.plateName} ` : "") + shown.name, shown.look))];
  if (shown.beside && !isKept()) panes.push(besidePane());
  else if (view.get("beside") === "light") {
    const other = shown.look.images.find((each) => each !== photograph);
    if (other) panes.push(pane(other, other.modality));
  }
  viewer.show(panes);
  viewer.heat = view.has("heat");
  find("[data-do=heat]").setAttribute("aria-pressed", view.has("heat"));
  find("[data-do=compare]").setAttribute("aria-pressed", panes.length > 1);
  showKept();
}

/** Tell if the drop that is shown is the one that is kept in view. */
function isKept() {
  return view.get("compare") === String(shown.drop) && view.get("at") === String(shown.inspection);
}

function showKept() {
  find("[data-do=keep]").setAttribute("aria-pressed", isKept());
  const note = find("#kept");
  note.hidden = !view.has("compare") || !shown.beside;
  if (note.hidden) return;
  note.textContent = isKept() ? "kept in view: go to another drop" : `next to ${besideName()}, which is kept`;
}

/** Keep this drop in view next to the ones that one goes to, or end it. */
async function keep() {
  const its = await known();
  if (its) beside(isKept() ? {} : { compare: its.drop, at: its.inspection });
}

function put(changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined) view.delete(name);
    else view.set(name, value);
  }
  history.replaceState(null, "", addressOf(current()));
}

function beside(what) {
  if (!current()) return;
  put({ compare: null, at: null, beside: null, ...what });
  settle();
}

/** Show another date beside: the one before, or the one after the first; a second time nothing. */
function compare() {
  if (!shown || view.has("compare") || view.has("at") || view.has("beside")) return beside({});
  const here = shown.looks.indexOf(shown.inspection);
  const other = shown.looks[here - 1] ?? shown.looks[here + 1];
  return other ? beside({ at: other }) : beside({ beside: "light" });
}

function light() {
  if (!shown || !current() || shown.look.images.length < 2) return;
  const images = shown.look.images;
  const now = images.indexOf(inLight(shown.look));
  put({ light: images[(now + 1) % images.length].modality });
  showImages();
}

function heat() {
  if (!current()) return;
  put({ heat: view.has("heat") ? null : "1" });
  if (shown) showImages();
}

/** Go to the inspection before or after; the list stays in its order, at that inspection. */
function inspection(step) {
  if (!shown || shown.drop !== current()?.drop) return;
  const to = shown.looks[shown.looks.indexOf(current().inspection) + step];
  if (to) moveTo(to);
}

async function moveTo(to) {
  const entry = current();
  const address = entry.address.replace(/([?&]inspection=)\d+/, `$1${to}`);
  const thumb = find(`#strip a[data-inspection="${to}"] img`)?.getAttribute("src");
  await loadList(entry.drop, address.split("?")[1]);
  // A list over many plates has each drop at the inspection that made it a hit.
  if (current().inspection !== to) {
    const look = { label: null, mine: null, p: null, state: "", view: thumb?.replace("/thumb/", "/view/") };
    list[at] = { ...current(), ...look, inspection: to, address };
    await go(at);
  }
}

async function loadList(drop, query) {
  const answer = await fetch(`/api/order/${drop}?${query}`);
  if (!answer.ok) return;
  const { entries } = await answer.json();
  list = entries;
  const unsaved = queue.unsaved();
  for (const [key, word] of unsaved) own.set(key, word);
  await go(Math.max(0, list.findIndex((entry) => entry.drop === drop)));
}

function label(word) {
  const entry = current();
  if (!entry) return;
  own.set(`${entry.drop}:${entry.inspection}`, word);
  const labels = [{ drop: entry.drop, inspection: entry.inspection, label: word }];
  queue.label(labels, `${entry.name} ${word}`, addressOf(entry));
  if ("advance" in place.dataset && at + 1 < list.length) go(at + 1);
  else {
    showVerdict();
    settleSoon();
  }
}

/** What the server says of a drop replaces what was shown at once, unless something newer waits. */
function stored(event) {
  const waiting = queue.unsaved();
  for (const key of own.keys()) if (!waiting.has(key)) own.delete(key);
  for (const { now } of event.detail.saved ?? []) {
    const entry = now && list.find(({ drop, inspection: its }) => drop === now.drop && its === now.inspection);
    if (entry) Object.assign(entry, { label: now.label, mine: now.mine, p: now.p, state: now.state, hit: now.hit });
  }
  showVerdict();
  live.soon(300);
}

function undo() {
  const act = queue.undo();
  if (!act) return;
  const its = act.labels?.[0];
  if (its) own.delete(`${its.drop}:${its.inspection}`);
  const to = list.findIndex((entry) => entry.drop === its?.drop && entry.inspection === its?.inspection);
  if (to >= 0) go(to);
  else location.assign(act.address);
}

function mark(kind, words, text) {
  const { drop, inspection: inspection_ } = current();
  queue.send({ url: "/api/marks", body: { kind, drop, inspection: inspection_, ...(text ? { text } : {}) }, words });
}

/** Return what is known of the drop that one sees; null where that cannot be had. */
async function known() {
  const here = () => shown && shown.drop === current()?.drop && shown.inspection === current().inspection;
  if (!here()) await settle();
  return here() ? shown : null;
}

async function follow() {
  const its = await known();
  if (!its) return;
  its.followed = !its.followed;
  find("[data-do=follow]").setAttribute("aria-pressed", its.followed);
  mark(its.followed ? "follow" : "unfollow", `${its.name} ${its.followed ? "followed" : "not followed"}`);
}

async function harvested() {
  const its = await known();
  if (!its) return;
  its.harvested = !its.harvested;
  find("[data-do=harvested]").setAttribute("aria-pressed", its.harvested);
  mark(its.harvested ? "harvested" : "unharvested", `${its.name} ${its.harvested ? "" : "not "}harvested`);
}

function note(open) {
  const form = find("#note");
  form.hidden = !open;
  if (open) form.elements.text.focus();
  else find("[data-do=note]").focus();
}

function saveNote(event) {
  event.preventDefault();
  const { text } = event.target.elements;
  mark("note", `Note on ${current().name}`, text.value);
  text.value = "";
  note(false);
}

function goTo() {
  const dialog = find("#goto");
  find("#goto-said").textContent = "";
  dialog.showModal();
  dialog.querySelector("input").select();
}

function gone(event) {
  if (event.submitter?.value !== "go") return;
  const { well } = event.target.elements;
  const to = listed(well.value);
  if (to < 0) {
    event.preventDefault();
    find("#goto-said").textContent = `${well.value || "Nothing"} is no drop of this list.`;
    return;
  }
  well.value = "";
  go(to);
}

/** Find a drop of the list by its name: A1, a01, A1.2 or A1b, which is A1.2 too. */
function listed(text) {
  const parts = /^\s*([a-z]{1,2})\s*0*(\d{1,2})(?:\s*[.\s]?\s*(\d{1,2})|\s*([a-h]))?\s*$/i.exec(text);
  if (!parts) return -1;
  const well = parts[1].toUpperCase() + parts[2].padStart(2, "0");
  const number = parts[3] ?? (parts[4] ? parts[4].toLowerCase().charCodeAt(0) - 96 : null);
  return list.findIndex(({ name }) => (number === null ? name.split(".")[0] === well : name === `${well}.${number}`));
}

export async function start() {
  keys.on({ next: () => go(at + 1), previous: () => go(at - 1), first: () => go(0), last: () => go(list.length - 1) });
  keys.on({ earlier: () => inspection(-1), later: () => inspection(1), light, heat, compare, keep, goto: goTo });
  keys.on({ zoom: () => viewer.toggle(), none: () => note(false) });
  if (mayLabel) {
    for (const [action, word] of Object.entries(WORDS)) keys.on({ [action]: () => label(word) });
    keys.on({ undo, follow, harvested, note: () => note(true), "close-note": () => note(false) });
    find("#note").addEventListener("submit", saveNote);
    find("#note").addEventListener("keydown", (event) => event.key === "Escape" && note(false));
  }
  find("#goto form").addEventListener("submit", gone);
  find("#drop").addEventListener("click", (event) => {
    const link = event.target.closest("#strip a[data-inspection]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    moveTo(Number(link.dataset.inspection));
  });
  viewer.onSwipe = (step) => go(at + step);
  live.refreshWith(settle);
  document.addEventListener("saved", stored);
  document.addEventListener("refused", stored);
  readPanel();
  await loadList(Number(place.dataset.drop), place.dataset.list);
}
