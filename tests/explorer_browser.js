// Runs the scripts of an explorer page on a document that records what they do: node explorer_browser.js PAGE prints JSON.
"use strict";
const fs = require("fs"), vm = require("vm");
const page = fs.readFileSync(process.argv[2], "utf8");
const block = (id) => page.match(new RegExp(`<script[^>]* id="${id}">([\\s\\S]*?)</script>`))[1];
const frames = [];
class Element {
  constructor() { Object.assign(this, { listeners: {}, attributes: {}, style: {}, children: [], clientWidth: 200, calls: {} }); }
  addEventListener(kind, f) { this.listeners[kind] = f; }
  setAttribute(key, value) { this.attributes[key] = value; }
  appendChild(child) { this.children.push(child); return child; }
  getBoundingClientRect() { return { left: 10, top: 20, width: 200, height: 200 }; }
  setPointerCapture(id) { this.captured = id; }
  hasPointerCapture(id) { return this.captured === id; }
  getContext() {
    const element = this, put = (pixels) => (element.pixels = pixels);
    const count = (key) => () => { element.calls[key] = (element.calls[key] || 0) + 1; };
    return new Proxy({ putImageData: put }, { get: (t, key) => t[key] ?? count(key), set: () => true });
  }
}
const elements = {}, made = [], styles = { getPropertyValue: () => " #123456" };
const byId = (id) => (elements[id] ??= new Element());
byId("data").textContent = block("data");
class ImageData { constructor(w, h) { this.data = new Uint8ClampedArray(4 * w * h); } }
const bar = { addEventListener() {} };
const world = {
  atob, ImageData, JSON, Math,
  document: { getElementById: byId, createElement: () => (made.push(new Element()), made[made.length - 1]) },
  window: { devicePixelRatio: 2, addEventListener() {}, matchMedia: () => bar },
  getComputedStyle: () => styles,
  requestAnimationFrame: (f) => frames.push(f),
};
vm.createContext(world);
for (const id of ["decoder", "page"]) vm.runInContext(block(id), world);
const out = [], half = JSON.parse(block("data")).half;
function look() {
  const waiting = frames.length;
  frames.splice(0).forEach((f) => f());
  const values = [0, 1].map((i) => [(Number(byId("slider" + i).value) * half) / 100, byId("value" + i).textContent]);
  out.push({ waiting, values, image: [...byId("image").pixels.data].filter((_, i) => i % 4 === 0), dots: made[0].calls.arc || 0 });
  made[0].calls = {};
}
const plane = byId("plane"), key = (k, shiftKey) => plane.listeners.keydown({ key: k, shiftKey, preventDefault() {} });
const pointer = (kind, x, y) => plane.listeners["pointer" + kind]({ clientX: x, clientY: y, button: 0, pointerId: 7 });
look();
byId("slider0").value = (100 * 1.5) / half; byId("slider0").listeners.input(); look();
pointer("move", 30, 30); look(); // without a press: nothing moves
pointer("down", 10 + 150, 20 + 50); pointer("move", 10 + 50, 20 + 150); look();
pointer("move", 900, -900); look(); // past the corner
key("Home"); look();
key("ArrowRight"); key("ArrowDown", true); look();
const buttons = byId("legend").children.filter((c) => c.listeners.click);
if (buttons.length) { buttons[1].listeners.click(); look(); buttons[1].listeners.click(); look(); }
const text = (e) => [e.textContent, ...e.children.map(text)].flat().filter((t) => t !== undefined);
console.log(JSON.stringify({ out, note: byId("note").textContent, names: [0, 1].map((i) => byId("name" + i).textContent),
  legend: text(byId("legend")), step: Number(byId("slider0").step), limits: [Number(byId("slider0").min), Number(byId("slider0").max)] }));
