/** Pictures and rows to paint after: dropped, pasted, chosen or pinned; shown as chips. */

import { byId, h, say } from "./dom.js";
import { addExemplar, exemplarsHere, leftOutHere, onChange, removeExemplar, toggleLeftOut } from "./state.js";

/** Longer edge. Encoders see no more than this, and a phone's photo would be too long for a request. */
const EDGE = 512;

/** @type {import("./state.js").Exemplar|null} what is being dragged within this page */
let dragged = null;
export const setDragged = (exemplar) => {
  dragged = exemplar;
};

/**
 * A picture as a PNG that the service accepts: upright, small, and without what a camera writes into a file.
 * @param {Blob} file
 * @returns {Promise<string>} data: URI
 */
async function asPng(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, EDGE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/png");
}

async function addFiles(files) {
  let problem = "";
  for (const file of files) {
    try {
      problem = addExemplar({ kind: "picture", name: file.name || "pasted picture", data: await asPng(file) }) || problem;
    } catch {
      problem = `“${file.name}” is no picture that this browser can read.`;
    }
  }
  say(byId("exemplars-error"), problem);
}

/** As requests have them. */
export function exemplarBodies() {
  return exemplarsHere().map((own) =>
    own.kind === "row" ? { row: own.row.row } : { image: own.data, caption: captionOf(own.name) },
  );
}

/** "red-apple.png" → "red apple" */
export const captionOf = (name) =>
  name
    .replace(/\.[A-Za-z0-9]+$/, "")
    .replace(/[-_]+/g, " ")
    .trim();

function chip(caption, picture, onRemove, verb) {
  const label = h("span", { class: "chip-text" }, caption);
  const image = picture ? h("img", { src: picture, alt: "", width: 28, height: 28 }) : null;
  const remove = h("button", { type: "button", class: "chip-remove", "aria-label": `${verb} ${caption}` }, "×");
  remove.addEventListener("click", () => {
    const list = remove.closest("ul");
    onRemove();
    // The button is gone: keyboards go on at the next chip, or where new ones are chosen.
    (list.querySelector("button") ?? byId("choose")).focus();
  });
  return h("li", { class: "chip" }, image, label, remove);
}

function show() {
  const chips = exemplarsHere().map((own) =>
    own.kind === "row"
      ? chip(own.row.caption, own.row.thumbnail, () => removeExemplar(own), "Take away")
      : chip(own.name, own.data, () => removeExemplar(own), "Take away"),
  );
  byId("chips").replaceChildren(...chips);
  const out = leftOutHere();
  byId("left-out").hidden = out.length === 0;
  byId("left-out-chips").replaceChildren(
    ...out.map((row) => chip(row.caption, row.thumbnail, () => toggleLeftOut(row), "Use again")),
  );
}

const isFileInput = (target) => target instanceof HTMLInputElement && target.type === "file";
const carriesPictures = (event) => dragged !== null || event.dataTransfer.types.includes("Files");

export function startExemplars() {
  const files = byId("exemplar-files");
  byId("choose").addEventListener("click", () => files.click());
  files.addEventListener("change", async () => {
    await addFiles([...files.files]);
    files.value = ""; // so that the same file can be chosen again
  });
  const area = byId("exemplars");
  // Anywhere on the page: a file that misses the area would otherwise replace the page.
  document.addEventListener("dragover", (event) => {
    if (!carriesPictures(event) || isFileInput(event.target)) return;
    event.preventDefault();
    area.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) area.classList.remove("over");
  });
  document.addEventListener("dragend", () => {
    dragged = null;
    area.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    area.classList.remove("over");
    if (!carriesPictures(event) || isFileInput(event.target)) return;
    event.preventDefault();
    const own = dragged;
    dragged = null;
    if (own !== null) say(byId("exemplars-error"), addExemplar(own));
    else addFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const pictures = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (pictures.length === 0) return;
    event.preventDefault();
    addFiles(pictures);
  });
  onChange(show);
}
