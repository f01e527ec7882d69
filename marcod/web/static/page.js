// The page's script: keys, labels on their way to the server, and what each page does.

import { all, element } from "./dom.js";
import * as keys from "./keys.js";
import * as queue from "./queue.js";
import * as live from "./live.js";

const PAGES = { plate: "./plate.js", drop: "./drop.js", review: "./review.js" };

/** Say of a small image that it cannot be shown; of a large one its page tells why. */
function sayMissing(image) {
  if (image.matches?.("img[src*='/thumb/']")) image.replaceWith(element("span", { className: "no-image" }, "cannot be shown"));
}

async function start() {
  document.addEventListener("error", (event) => sayMissing(event.target), true);
  for (const image of all("img")) if (image.complete && !image.naturalWidth) sayMissing(image);
  keys.listen();
  queue.start();
  const its = PAGES[document.body.dataset.page];
  if (its) await (await import(its)).start();
  live.start();
  document.body.dataset.ready = "";
}

start();
