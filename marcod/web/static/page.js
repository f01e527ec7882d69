// The page's script: keys, labels on their way to the server, and what each page does.

import * as keys from "./keys.js";
import * as queue from "./queue.js";
import * as live from "./live.js";

const PAGES = { plate: "./plate.js", drop: "./drop.js", review: "./review.js" };

async function start() {
  keys.listen();
  queue.start();
  const its = PAGES[document.body.dataset.page];
  if (its) await (await import(its)).start();
  live.start();
  document.body.dataset.ready = "";
}

start();
