// Keys and buttons: one action has keys, which the server writes into the page, and a button that shows the first one.

const keyOf = new Map();
for (const [action, keys] of Object.entries(JSON.parse(document.body.dataset.keys || "{}"))) {
  for (const key of keys) keyOf.set(key, action);
}
const actions = {};

/** Add what actions of this page do. */
export function on(added) {
  Object.assign(actions, added);
}

/** Do an action; false where this page has none of this name. */
export function run(action, event) {
  if (!Object.hasOwn(actions, action)) return false;
  actions[action](event);
  return true;
}

/** Tell if letters belong to what has the focus. */
export function isTyping(target) {
  return target instanceof Element
    && Boolean(target.closest("input:not([type=checkbox]), select, textarea, [contenteditable]"));
}

function nameOf(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  // AltGr, with which some keyboards write "?", is Ctrl and Alt together for Windows.
  if (event.getModifierState("AltGraph")) return key;
  if (event.altKey) return null;
  return event.ctrlKey || event.metaKey ? `Ctrl+${key}` : key;
}

function pressed(event) {
  if (event.isComposing || isTyping(event.target) || document.querySelector("dialog[open]")) return;
  const name = nameOf(event);
  const action = name === "Escape" ? "none" : keyOf.get(name);
  if (!action || !Object.hasOwn(actions, action)) return;
  event.preventDefault();
  if (!event.repeat) run(action, event);
}

function clicked(event) {
  const button = event.target.closest?.("[data-do]");
  if (!button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (button.getAttribute("aria-disabled") === "true" || run(button.dataset.do, event)) event.preventDefault();
}

/** Listen to keys and buttons. */
export function listen() {
  document.addEventListener("keydown", pressed);
  document.addEventListener("click", clicked);
  const sheet = document.getElementById("keys");
  on({ help: () => showSheet(sheet) });
}

function showSheet(sheet) {
  for (const row of sheet.querySelectorAll("[data-action]")) row.hidden = !Object.hasOwn(actions, row.dataset.action);
  for (const row of sheet.querySelectorAll("[data-page]")) row.hidden = row.dataset.page !== document.body.dataset.page;
  sheet.showModal();
  sheet.scrollTop = 0;
}
