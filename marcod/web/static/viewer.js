// The image, large: fitted or zoomed, dragged, pinched; one or two panes that zoom together. The zoom stays from image
// to image: `scale` is that of the fitted image, `x` and `y` the point in the middle, from 0 to 1.

import { element } from "./dom.js";

const LARGEST = 16;
const STEP = 1.25;
const SWIPE_PX = 60;
const WHOLE_WIDTH = "X-Whole-Width";
const BAR_UM = [10, 20, 50, 100, 200, 500, 1000, 2000];

export class Viewer {
  #box;
  #panes = [];
  #zoom = { scale: 1, x: 0.5, y: 0.5 };
  #pointers = new Map();
  #moved = 0;
  #heat = false;

  constructor(box) {
    this.#box = box;
    this.onSwipe = () => {};
    box.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    box.addEventListener("pointerdown", (event) => this.#down(event));
    box.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, (event) => this.#up(event));
    box.addEventListener("dblclick", (event) => this.toggle(event));
    new ResizeObserver(() => this.#draw()).observe(box);
  }

  /** Show images: `[{image, original, heat, name, um}]`, one or two; `um` is micrometres per pixel of the whole image. */
  show(panes) {
    while (this.#panes.length > panes.length) this.#panes.pop().frame.remove();
    while (this.#panes.length < panes.length) this.#panes.push(this.#pane());
    if (this.#box.firstElementChild?.tagName === "IMG") this.#box.firstElementChild.remove();
    this.#box.classList.toggle("two", panes.length > 1);
    panes.forEach((pane, at) => this.#fill(this.#panes[at], pane));
    this.#draw();
  }

  set heat(is) {
    this.#heat = is;
    for (const pane of this.#panes) this.#showHeat(pane);
  }

  /** Change between the whole image and one pixel for one, around a point of the image. */
  async toggle(event) {
    if (this.#zoom.scale > 1.001) {
      this.#zoom = { scale: 1, x: 0.5, y: 0.5 };
      this.#draw();
      return;
    }
    const pane = this.#paneAt(event);
    const point = event ? this.#pointAt(event, pane) : { x: 0.5, y: 0.5 };
    await this.#sharpen(pane);
    const pixels = pane.sharp?.naturalWidth || pane.image?.naturalWidth || 0;
    const scale = Math.max(1.5, pixels / (devicePixelRatio || 1) / this.#fitted(pane).width);
    this.#zoomTo(Math.min(LARGEST, scale), point);
  }

  #pane() {
    const frame = element("div", { className: "pane" });
    const sheet = element("div", { className: "sheet" });
    const name = element("p", { className: "pane-name" });
    const bar = element("p", { className: "scale-bar", hidden: true });
    const said = element("p", { className: "pane-said", role: "status", hidden: true });
    frame.append(sheet, name, said, bar);
    this.#box.append(frame);
    return { frame, sheet, name, said, bar, image: null, sharp: null, over: null, pixels: 0 };
  }

  #fill(pane, { image, original, heat, name, um }) {
    if (pane.image !== image) {
      pane.sheet.replaceChildren(...(image ? [image] : [element("p", { className: "no-image" }, "no image")]));
      pane.sharp = null;
      pane.over = null;
      pane.pixels = 0;
      this.#say(pane, "");
      image?.addEventListener("load", () => this.#draw(), { once: true });
      image?.addEventListener("error", () => this.#tell(pane, image), { once: true });
      // Loaded ahead, it may have failed already.
      if (image?.complete && !image.naturalWidth) this.#tell(pane, image);
    }
    if (image) image.alt = name;
    Object.assign(pane, { image, original, heat, um });
    pane.name.textContent = name;
    pane.name.hidden = this.#panes.length < 2;
    if (um && image && !pane.pixels) this.#measure(pane, image);
    if (this.#heat) this.#showHeat(pane);
  }

  /** Ask how wide the whole image is, of which this is a smaller one; the browser has the answer already. */
  async #measure(pane, image) {
    await image.ready;
    try {
      const answer = await fetch(image.src, { cache: "force-cache" });
      if (pane.image === image) pane.pixels = Number(answer.headers.get(WHOLE_WIDTH)) || 0;
    } catch {
      // The bar is there once all pixels are.
    }
    this.#draw();
  }

  #say(pane, text) {
    pane.said.textContent = text;
    pane.said.hidden = !text;
  }

  /** Say why an image is not there: the server tells it in one sentence. */
  async #tell(pane, image) {
    let sentence = "the image cannot be shown";
    try {
      sentence = (await (await fetch(image.src)).json()).error ?? sentence;
    } catch {
      // No answer, or no sentence.
    }
    if (pane.image === image) pane.sheet.replaceChildren(element("p", { className: "no-image" }, sentence));
  }

  /** Replace the 1024 pixels by all of them, in the same place. */
  async #sharpen(pane) {
    if (pane.sharp || !pane.original) return;
    const { image } = pane;
    const sharp = element("img", { alt: image.alt, src: pane.original, draggable: false });
    pane.frame.classList.add("loading");
    try {
      await sharp.decode();
      if (pane.image === image && !pane.sharp) {
        pane.sharp = sharp;
        pane.sheet.prepend(sharp);
        image.remove();
      }
    } catch {
      // The smaller one stays.
    }
    pane.frame.classList.remove("loading");
    this.#draw();
  }

  #showHeat(pane) {
    if (!this.#heat || !pane.heat) {
      pane.over?.remove();
      pane.over = null;
      this.#say(pane, "");
      return;
    }
    if (pane.over?.dataset.of === pane.heat) return;
    pane.over?.remove();
    const over = element("img", { className: "heat", alt: "", src: pane.heat, draggable: false });
    over.dataset.of = pane.heat;
    pane.over = over;
    pane.frame.classList.add("loading");
    this.#say(pane, "The heat map is being drawn, which takes ten seconds or more.");
    const note = (text) => {
      pane.frame.classList.remove("loading");
      if (pane.over === over) this.#say(pane, text);
    };
    over.addEventListener("load", () => note("Bright: what the model\u2019s probability of crystals depends on"), { once: true });
    over.addEventListener("error", async () => {
      over.remove();
      const answer = await fetch(pane.heat).catch(() => null);
      note((await answer?.json().catch(() => null))?.error ?? "there is no heat map");
    }, { once: true });
    pane.sheet.append(over);
  }

  #fitted(pane) {
    const box = pane.frame.getBoundingClientRect();
    const image = pane.sharp ?? pane.image;
    const ratio = image?.naturalWidth ? image.naturalWidth / image.naturalHeight : 4 / 3;
    const width = Math.min(box.width, box.height * ratio);
    return { box, width, height: width / ratio };
  }

  #draw() {
    this.#box.classList.toggle("zoomed", this.#zoom.scale > 1.001);
    for (const pane of this.#panes) {
      const { box, width, height } = this.#fitted(pane);
      const { scale, x, y } = this.#zoom;
      const style = pane.sheet.style;
      style.width = `${width}px`;
      style.height = `${height}px`;
      const left = box.width / 2 - x * width * scale;
      const top = box.height / 2 - y * height * scale;
      style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
      if (scale > 1.001 && scale * width * (devicePixelRatio || 1) > 1100) this.#sharpen(pane);
      this.#drawBar(pane, width * scale);
    }
  }

  /** Draw a scale bar where the size of a pixel is set, and known how many the whole image has. */
  #drawBar(pane, width) {
    const pixels = pane.sharp?.naturalWidth || pane.pixels;
    pane.bar.hidden = !pane.um || !pixels;
    if (pane.bar.hidden) return;
    const perPixel = width / pixels / pane.um;
    const um = BAR_UM.findLast((each) => each * perPixel < 160) ?? BAR_UM[0];
    pane.bar.style.width = `${um * perPixel}px`;
    pane.bar.textContent = um < 1000 ? `${um} \u00b5m` : `${um / 1000} mm`;
  }

  #paneAt(event) {
    return this.#panes.find((pane) => pane.frame.contains(event?.target)) ?? this.#panes[0];
  }

  #pointAt(event, pane) {
    const box = pane.sheet.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  /** Zoom; the point of the image stays where it is, or comes to the middle where none is given. */
  #zoomTo(scale, point) {
    const old = this.#zoom;
    const kept = Math.min(LARGEST, Math.max(1, scale));
    const ratio = old.scale / kept;
    this.#zoom = { scale: kept, x: point.x + (old.x - point.x) * ratio, y: point.y + (old.y - point.y) * ratio };
    this.#bound();
    this.#draw();
  }

  #bound() {
    const zoom = this.#zoom;
    const half = 0.5 / zoom.scale;
    for (const way of ["x", "y"]) zoom[way] = Math.min(1 - half, Math.max(half, zoom[way]));
  }

  #wheel(event) {
    event.preventDefault();
    const point = this.#pointAt(event, this.#paneAt(event));
    this.#zoomTo(this.#zoom.scale * (event.deltaY < 0 ? STEP : 1 / STEP), point);
  }

  #down(event) {
    if (event.button !== 0) return;
    if (event.pointerType !== "mouse" || this.#zoom.scale > 1) this.#box.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, from: event.clientX });
    this.#moved = 0;
  }

  #move(event) {
    const last = this.#pointers.get(event.pointerId);
    if (!last) return;
    const before = this.#spread();
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    Object.assign(last, { x: event.clientX, y: event.clientY });
    this.#moved += Math.abs(dx) + Math.abs(dy);
    const pane = this.#paneAt(event);
    if (this.#pointers.size === 2 && before) {
      const middle = this.#middle();
      const point = this.#pointAt({ clientX: middle.x, clientY: middle.y }, pane);
      this.#zoomTo((this.#zoom.scale * this.#spread()) / before, point);
    } else if (this.#zoom.scale > 1) {
      const { width, height } = this.#fitted(pane);
      this.#zoom.x -= dx / (width * this.#zoom.scale);
      this.#zoom.y -= dy / (height * this.#zoom.scale);
      this.#bound();
      this.#draw();
    }
  }

  #up(event) {
    const last = this.#pointers.get(event.pointerId);
    this.#pointers.delete(event.pointerId);
    if (!last || event.type === "pointercancel" || this.#pointers.size || this.#zoom.scale > 1) return;
    const far = event.clientX - last.from;
    if (event.pointerType !== "mouse" && Math.abs(far) > SWIPE_PX) this.onSwipe(far < 0 ? 1 : -1);
  }

  #spread() {
    const [a, b] = [...this.#pointers.values()];
    return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
  }

  #middle() {
    const [a, b] = [...this.#pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  }
}
