// The review: one drop after the other with its reason. The next ones are claimed and loaded ahead.

import { element, find } from "./dom.js";
import * as keys from "./keys.js";
import * as live from "./live.js";
import * as queue from "./queue.js";
import { Viewer } from "./viewer.js";

const AHEAD = 3;
const WORDS = { crystals: "Crystals", precipitate: "Precipitate", clear: "Clear", other: "Other" };

const viewer = new Viewer(find("#viewer"));
const images = new Map();
const answered = new Map();

let cards = [];
let asking = false;
let modality = null;

function load(card) {
  const photograph = card.images.find((each) => each.modality === modality) ?? card.images[0];
  if (!photograph) return null;
  let image = images.get(photograph.view);
  if (!image) {
    image = element("img", { src: photograph.view, draggable: false });
    image.ready = image.decode().catch(() => {});
    images.set(photograph.view, image);
    if (images.size > 24) images.delete(images.keys().next().value);
  }
  return { image, original: photograph.original, name: card.name, um: card.um_per_px };
}

/** Claim items until enough are here. */
async function fill() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    while (cards.length <= AHEAD) {
      const besides = [...cards.map((card) => card.item), ...answered.keys()].slice(-20);
      const answer = await queue.post("/api/review/next", JSON.stringify({ besides }));
      if (!answer.ok) break;
      const { item } = await answer.json();
      if (!item || cards.some((card) => card.item === item.item) || answered.has(item.item)) break;
      cards.push(item);
      load(item);
      if (cards.length === 1) show();
    }
  } catch {
    setTimeout(fill, 3000);
  }
  asking = false;
  if (!cards.length) show();
}

function show() {
  const card = cards[0];
  document.body.classList.toggle("idle", !card);
  const none = asking ? "Asking for a drop." : "Nothing waits for you. New drops appear here by themselves.";
  find("#reason").textContent = card ? card.reason : none;
  find("#name").replaceChildren();
  find("#said").replaceChildren();
  if (!card) {
    viewer.show([]);
    return;
  }
  const { source, key, name } = card.plate;
  const drop = element("a", { href: `/drop/${card.drop}?inspection=${card.inspection}` }, `${name} ${card.name}`);
  const plate = element("a", { href: `/plate/${encodeURIComponent(source)}/${encodeURIComponent(key)}` }, "its plate");
  find("#name").append(card.stream === "audit" ? `${name} ${card.name}` : drop);
  find("#said").append(element("p", { className: "soft" }, `${source}, inspection ${card.inspection_name}, `, plate));
  find("#said").append(...bars(card));
  const pane = load(card);
  viewer.show(pane ? [pane] : []);
  find("[data-do=light]").disabled = card.images.length < 2;
  pane?.image.ready.then(() => {
    if (cards[0] !== card) return;
    requestAnimationFrame(() => document.dispatchEvent(new CustomEvent("shown", { detail: { drop: card.drop } })));
  });
}

function bars(card) {
  const rows = Object.entries(card.probabilities).map(([name, p]) => element("tr", {},
    element("th", { scope: "row" }, name),
    element("td", {}, element("meter", { min: 0, max: 1, value: p, "aria-label": name })),
    element("td", { className: "number" }, p.toFixed(3))));
  if (!rows.length) return card.stream === "audit" ? [element("p", {}, "No score is shown before the answer.")] : [];
  return [element("table", { className: "bars" }, element("tbody", {}, ...rows)),
    element("p", { className: "soft" }, card.model ? `scored by ${card.model}` : "")];
}

function answer(word) {
  const card = cards.shift();
  if (!card) return;
  const words = word === "skip" ? `${card.name} skipped` : `${card.name} ${word}`;
  answered.set(card.item, card);
  queue.send({ url: "/api/review/answer", body: { item: card.item, answer: word }, words });
  queue.remember({ item: card.item, words, address: "/review" });
  fill();
  show();
}

function undo() {
  const act = queue.undo();
  if (!act) return;
  const card = answered.get(act.item);
  if (!card) {
    if (act.address !== "/review") location.assign(act.address);
    else find("#before").replaceChildren(element("p", {}, `${act.words}: taken back; it comes again.`));
    return;
  }
  answered.delete(act.item);
  find("#before").replaceChildren();
  cards.unshift(card);
  show();
}

/** Tell what the model had said, once an answer is stored. */
function stored(event) {
  for (const saved of event.detail.saved) {
    const card = saved.item;
    if (!card?.answer || card.answer === "skip") continue;
    const top = Object.entries(card.probabilities).sort((a, b) => b[1] - a[1])[0];
    const said = top ? `the model says ${top[0]} ${top[1].toFixed(3)}` : "no score";
    find("#before").replaceChildren(element("h2", {}, "The drop before"), element("p", {},
      element("b", {}, `${card.name} ${card.answer}`), `, ${said}`));
  }
  live.soon(500);
}

function light() {
  const card = cards[0];
  if (!card || card.images.length < 2) return;
  const now = card.images.findIndex((each) => each.modality === modality);
  modality = card.images[(Math.max(0, now) + 1) % card.images.length].modality;
  show();
}

function release() {
  const items = cards.map((card) => card.item);
  if (!items.length) return;
  queue.post("/api/review/release", JSON.stringify({ items }), { keepalive: true });
}

async function refresh() {
  await live.refreshParts();
  await fill();
}

export async function start() {
  if (!("mayLabel" in document.body.dataset)) return;
  for (const [action, word] of Object.entries(WORDS)) keys.on({ [action]: () => answer(word) });
  keys.on({ skip: () => answer("skip"), undo, light, zoom: () => viewer.toggle() });
  document.addEventListener("saved", stored);
  document.addEventListener("visibilitychange", fill);
  addEventListener("pagehide", release);
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  live.refreshWith(refresh);
  await fill();
  // Asking filled the queue, so more waits than the page said.
  live.soon(0);
}
