// Live pages: parts of the page that the server shows differently now are put in place of those that stand here.

const PAUSE_MS = 2000;
const AGAIN_MS = 30_000;
const FRESH_MS = 3000;
const NAME = "marcod-events";

let wish = null;
let timer = 0;
let refreshing = false;
let refresh = refreshParts;

/** Let a page bring itself up to date in its own way. */
export function refreshWith(own) {
  refresh = own;
}

/** Bring the page up to date, soon: many changes in a row are one. */
export function soon(ms = PAUSE_MS) {
  if (timer) return;
  timer = setTimeout(async () => {
    timer = 0;
    if (document.hidden || refreshing) return;
    refreshing = true;
    try {
      await refresh();
    } catch {
      // The server is away; the stream tells when it is there again.
    }
    refreshing = false;
  }, ms);
}

/** Fetch this page and replace what differs in its parts marked `data-live`. */
export async function refreshParts() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (other) merge(part, other);
  }
  document.dispatchEvent(new CustomEvent("refreshed"));
}

/** Replace children that have keys where they differ, so that focus and place stay; anything else as a whole. */
function merge(part, other) {
  const theirs = new Map(Array.from(other.querySelectorAll("[data-key]"), (each) => [each.dataset.key, each]));
  const ours = Array.from(part.querySelectorAll("[data-key]"));
  const same = ours.length > 0 && ours.length === theirs.size && ours.every((each) => theirs.has(each.dataset.key));
  if (!same) {
    if (source(part) === source(other)) return;
    before.set(part, other.outerHTML);
    part.replaceChildren(...other.childNodes);
    remember(part.parentNode);
    return;
  }
  const inOrder = ours.map((each) => theirs.get(each.dataset.key));
  for (const [at, each] of ours.entries()) if (source(each) !== source(inOrder[at])) adopt(each, inOrder[at]);
  const moved = Array.from(theirs.values()).some((each, at) => each !== inOrder[at]);
  if (moved && ours[0].parentNode === part) {
    const byKey = new Map(ours.map((each) => [each.dataset.key, each]));
    for (const key of theirs.keys()) part.append(byKey.get(key));
  }
}

const before = new WeakMap();

/** Return the text that the server wrote, before a script changed anything. */
function source(part) {
  return before.get(part) ?? part.outerHTML;
}

function remember(root = document) {
  for (const part of root.querySelectorAll("[data-live], [data-live] [data-key]")) before.set(part, part.outerHTML);
}

/** Say that a script changed an element, so that what the server says next replaces it. */
export function touched(part) {
  before.set(part, "");
}

function adopt(ours, theirs) {
  before.set(ours, theirs.outerHTML);
  const focused = ours.contains(document.activeElement);
  for (const { name, value } of theirs.attributes) ours.setAttribute(name, value);
  for (const { name } of Array.from(ours.attributes)) {
    if (!theirs.hasAttribute(name) && !KEPT.has(name)) ours.removeAttribute(name);
  }
  const image = ours.querySelector("img");
  const other = theirs.querySelector("img");
  if (image && other && image.getAttribute("src") === other.getAttribute("src")) other.replaceWith(image);
  ours.replaceChildren(...theirs.childNodes);
  if (focused) ours.querySelector("a, button")?.focus({ preventScroll: true });
}

const KEPT = new Set(["aria-selected", "tabindex"]);

/** Other windows of this browser, which hear of changes from the one that listens. */
const windows = window.BroadcastChannel ? new BroadcastChannel(NAME) : null;

function changed() {
  soon();
  windows?.postMessage("");
}

/**
 * Listen while the page is looked at, in one window of a browser: it has six connections to a server.
 *
 * The windows that are looked at stand in a row, and the first one listens. Only https and this host's own name have
 * such a row; elsewhere the window with the focus listens.
 */
function open() {
  if (wish || document.hidden || !window.EventSource || !(navigator.locks || document.hasFocus())) return;
  wish = new AbortController();
  const { signal } = wish;
  if (navigator.locks) navigator.locks.request(NAME, { signal }, () => listen(signal)).catch(() => {});
  else listen(signal);
}

function close() {
  wish?.abort();
  wish = null;
}

/** Hear of changes until the signal. */
function listen(signal) {
  return new Promise((resolve) => {
    let stream = null;
    let again = 0;
    const begin = () => {
      stream = new EventSource("/events");
      stream.addEventListener("change", changed);
      // Nobody heard what changed before; a page that has just been made shows it.
      stream.addEventListener("open", () => performance.now() > FRESH_MS && changed());
      stream.addEventListener("error", () => {
        // A proxy whose server is away, or too many pages: the browser does not try again by itself.
        if (stream.readyState === EventSource.CLOSED) again = setTimeout(begin, AGAIN_MS);
      });
    };
    signal.addEventListener("abort", () => {
      clearTimeout(again);
      stream?.close();
      resolve();
    });
    if (signal.aborted) resolve();
    else begin();
  });
}

function lookedAt() {
  if (document.hidden) close();
  else {
    open();
    soon(500);
  }
}

/** Listen to changes while the page is looked at. */
export function start() {
  remember();
  document.addEventListener("visibilitychange", lookedAt);
  windows?.addEventListener("message", () => soon());
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  if (!navigator.locks) {
    addEventListener("focus", lookedAt);
    addEventListener("blur", close);
  }
  open();
}
