// Labels, notes and answers on their way to the server. Each is kept in the browser until the server has confirmed it,
// has a key by which the server stores it once, and is sent again until it is stored or refused.

import { element } from "./dom.js";

const person = document.body.dataset.user ?? "";
const KEPT = `marcod:waiting:${person}:`;
const GIVEN = `marcod:given:${person}`;
const MOST = 100;
const TIMEOUT_MS = 20_000;
const LONGEST_PAUSE_MS = 15_000;
const AGAIN = new Set([401, 403, 408, 425, 429, 500, 502, 503, 504]);

let waiting = [];
let sending = false;
let failures = 0;
let timer = 0;
let one_by_one = 0;
let said = "";
let trouble = "";
let leaving = false;
const refused = [];

/** Send JSON in the name of this page's person: the server refuses it once somebody else is logged in here. */
export function post(url, body, more = {}) {
  const headers = { "Content-Type": "application/json", "X-Marcod-Person": encodeURIComponent(person) };
  return fetch(url, { method: "POST", headers, body, ...more });
}

/** Make a key that no other label has. */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();  // only where the page came by https or from this host
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Send `{url, body, words, several}` in its turn; `words` are for the person. Returns its key. */
export function send(entry) {
  const kept = { key: newKey(), at: Date.now(), n: waiting.length, ...entry };
  waiting.push(kept);
  keep(kept);
  trouble = failures ? trouble : "";
  said = kept.words ?? "";
  show();
  pump();
  return kept.key;
}

/** Give labels: `[{drop, inspection, label}]`. They are one act, which one undo takes back. */
export function label(labels, words, address) {
  const given = labels.map((each) => ({ ...each, key: newKey() }));
  const undone = given.map(({ drop, inspection, key }) => ({ drop, inspection, undo: key }));
  remember({ labels: undone, words, address });
  const several = given.length > 1;
  send({ url: "/api/labels", body: { labels: given, several }, words });
}

/** Take the last act back. Returns it, or null where there is none. */
export function undo() {
  const acts = remembered();
  const act = acts.pop();
  if (!act) return null;
  store(sessionStorage, GIVEN, JSON.stringify(acts));
  const words = `${act.words} taken back`;
  if (act.item) send({ url: "/api/review/undo", body: { item: act.item }, words });
  else {
    const labels = act.labels.map((each) => ({ ...each, key: newKey() }));
    send({ url: "/api/labels", body: { labels, several: labels.length > 1 }, words });
  }
  return act;
}

/** Keep an act for undo, in this tab. */
export function remember(act) {
  store(sessionStorage, GIVEN, JSON.stringify([...remembered(), act].slice(-200)));
}

function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(GIVEN) ?? "[]");
  } catch {
    return [];
  }
}

/** Return the labels that wait, by drop and inspection: what this person said last. */
export function unsaved() {
  const found = new Map();
  for (const entry of waiting) {
    for (const each of entry.body.labels ?? []) found.set(`${each.drop}:${each.inspection}`, each.label ?? null);
  }
  return found;
}

function store(storage, name, text) {
  try {
    storage.setItem(name, text);
  } catch {
    // Full, or forbidden: what waits is in memory alone, and leaving the page asks first.
  }
}

function keep(entry) {
  store(localStorage, KEPT + entry.key, JSON.stringify(entry));
}

function forget(entry) {
  waiting = waiting.filter((each) => each !== entry);
  try {
    localStorage.removeItem(KEPT + entry.key);
  } catch {
    // Nothing was kept.
  }
}

/** Take up what another tab, or this one before it was closed, left behind. */
function takeUp() {
  const known = new Set(waiting.map((entry) => entry.key));
  try {
    for (const [name, text] of Object.entries({ ...localStorage })) {
      if (name.startsWith(KEPT) && !known.has(name.slice(KEPT.length))) waiting.push(JSON.parse(text));
    }
  } catch {
    // No storage, or nothing that can be read.
  }
  waiting.sort((a, b) => a.at - b.at || a.n - b.n);
}

function nextBatch() {
  const first = waiting[0];
  if (first.url !== "/api/labels" || first.body.several || one_by_one > 0) return [first];
  const many = [];
  for (const entry of waiting.slice(0, MOST)) {
    if (entry.url !== "/api/labels" || entry.body.several) break;
    many.push(entry);
  }
  return many;
}

function bodyOf(batch) {
  if (batch[0].url === "/api/labels") {
    const several = Boolean(batch[0].body.several);
    return { labels: batch.flatMap((entry) => entry.body.labels), several };
  }
  const { body, key, url } = batch[0];
  return url === "/api/review/undo" ? body : { ...body, key };
}

async function pump() {
  if (sending || !waiting.length) return;
  clearTimeout(timer);
  sending = true;
  const batch = nextBatch();
  const body = JSON.stringify(bodyOf(batch));
  try {
    const more = { keepalive: body.length < 50_000, signal: AbortSignal.timeout?.(TIMEOUT_MS) };
    const answer = await post(batch[0].url, body, more);
    await settle(batch, answer);
  } catch {
    putOff("the server does not answer");
  }
  sending = false;
  show();
  if (waiting.length && !timer) pump();
}

async function settle(batch, answer) {
  const said_ = await answer.json();
  if (answer.ok) {
    failures = 0;
    trouble = "";
    one_by_one = Math.max(0, one_by_one - 1);
    for (const entry of batch) forget(entry);
    for (const each of [said_.saved ?? []].flat()) {
      if (each.state === "refused") refused.push({ words: wordsOf(batch, each.key), error: each.error });
    }
    document.dispatchEvent(new CustomEvent("saved", { detail: { entries: batch, saved: [said_.saved ?? []].flat() } }));
  } else if (AGAIN.has(answer.status)) {
    putOff(answer.status === 401 ? "you are not logged in any more" : said_.error);
  } else if (batch.length > 1) {
    one_by_one = batch.length;
  } else {
    forget(batch[0]);
    refused.push({ words: batch[0].words, error: said_.error });
    document.dispatchEvent(new CustomEvent("refused", { detail: { entry: batch[0] } }));
  }
}

function wordsOf(batch, key) {
  return batch.find((entry) => entry.body.labels?.some((each) => each.key === key))?.words ?? "a label";
}

function putOff(reason) {
  failures += 1;
  trouble = reason;
  const pause = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** (failures - 1)) * (0.75 + Math.random() / 2);
  timer = setTimeout(again, pause);
}

function again() {
  clearTimeout(timer);
  timer = 0;
  pump();
}

/** Show how what was given stands. */
function show() {
  const place = document.getElementById("saving");
  if (!place) return;
  const [state, ...content] = standing();
  place.hidden = false;
  place.className = `saving ${state}`;
  place.replaceChildren(...content);
}

function standing() {
  const count = waiting.reduce((sum, entry) => sum + (entry.body.labels?.length ?? 1), 0);
  if (refused.length) {
    const { words, error } = refused[0];
    const more = refused.length > 1 ? ` and ${refused.length - 1} more` : "";
    const done = element("button", { type: "button", onclick: () => { refused.length = 0; show(); } }, "Understood");
    return ["bad", `NOT SAVED: ${words}${more}. The server refused: ${error}. `, done];
  }
  if (failures) {
    const now = element("button", { type: "button", onclick: again }, "Try now");
    const login = element("a", { href: "/login", target: "_blank" }, "Log in");
    const what = `NOT SAVED: ${count} ${count === 1 ? "change waits" : "changes wait"}, ${trouble}; trying again. `;
    return trouble.startsWith("you are not logged in") ? ["bad", what, login, " ", now] : ["bad", what, now];
  }
  if (waiting.length) return ["busy", said ? `${said} · saving` : `Saving ${count}`];
  return ["good", said ? `${said} · saved` : "All saved"];
}

function leave(event) {
  // A page of ours that comes next sends what waits, so nothing is asked on the way to it.
  if (waiting.length && !leaving) event.preventDefault();
}

/** Send what waits from before, and watch over what is given here. */
export function start() {
  takeUp();
  addEventListener("beforeunload", leave);
  addEventListener("online", again);
  addEventListener("pageshow", () => { leaving = false; });
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    leaving = Boolean(link && link.origin === location.origin && !link.target);
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && failures) again();
  });
  if (waiting.length) show();
  pump();
}
