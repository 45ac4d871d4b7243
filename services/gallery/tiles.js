/** A row of a database: its picture, what is known of it, and what can be done with it. */

import { here } from "./api.js";
import { h } from "./dom.js";
import { isLeftOut, isPinned, onChange, toggleLeftOut, togglePin } from "./state.js";
import { setDragged } from "./exemplars.js";

/** Brings a tile in line with the state. Weak, so that tiles that were taken from the page are forgotten. */
const refreshers = new WeakMap();

onChange(() => {
  for (const tile of document.querySelectorAll(".tile")) refreshers.get(tile)?.();
});

/**
 * @param {object} neighbor of an answer
 * @param {string} database id
 * @param {"neighbor"|"found"} use a click on a neighbour leaves it out; a click on what was found pins it
 * @param {(problem: string) => void} onProblem
 */
export function rowTile(neighbor, database, use, onProblem) {
  const caption = neighbor.caption || neighbor.key || `row ${neighbor.row}`;
  const thumbnail = neighbor.thumbnail_url === null ? null : here(neighbor.thumbnail_url);
  const row = { database, row: neighbor.row, caption, licence: neighbor.licence, thumbnail };
  const picture = h("img", { src: thumbnail ?? "", alt: caption, width: 96, height: 96, draggable: true });
  const leave = () => toggleLeftOut(row);
  const pin = () => onProblem(togglePin(row));
  const main = h("button", { type: "button", class: "tile-picture", onclick: use === "neighbor" ? leave : pin }, picture);
  const second = h("button", { type: "button", class: "small", onclick: use === "neighbor" ? pin : leave });
  picture.addEventListener("dragstart", () => setDragged({ kind: "row", row }));
  const tile = h("li", { class: "tile", "data-row": String(neighbor.row) }, main, words(neighbor, caption), second);

  const refresh = () => {
    const [out, pinned] = [isLeftOut(row), isPinned(row)];
    tile.classList.toggle("out", out);
    tile.classList.toggle("pinned", pinned);
    const isNeighbor = use === "neighbor";
    // The label stays and the state changes: that is how a toggle is read aloud.
    main.setAttribute("aria-label", isNeighbor ? `Use ${caption}` : `Paint after ${caption}`);
    main.setAttribute("aria-pressed", String(isNeighbor ? !out : pinned));
    main.title = isNeighbor ? (out ? "Use it again" : "Leave it out") : pinned ? "Unpin" : "Paint after it";
    second.textContent = isNeighbor ? (pinned ? "Pinned" : "Pin") : out ? "Left out" : "Leave out";
    second.setAttribute("aria-label", isNeighbor ? `Pin ${caption}` : `Leave out ${caption}`);
    second.setAttribute("aria-pressed", String(isNeighbor ? pinned : out));
  };
  refreshers.set(tile, refresh);
  refresh();
  return tile;
}

/** What is no row: the words themselves, or a picture that was given. */
export function givenTile(caption, data) {
  const picture = data
    ? h("img", { src: data, alt: caption, width: 96, height: 96 })
    : h("span", { class: "tile-words", "aria-hidden": "true" }, "“ ”");
  return h(
    "li",
    { class: "tile given" },
    h("span", { class: "tile-picture" }, picture),
    h("div", { class: "tile-text" }, h("span", { class: "tile-caption" }, caption)),
  );
}

function words(neighbor, caption) {
  const artist = neighbor.fields?.artist || neighbor.fields?.style || "";
  const facts = [
    neighbor.score === null ? null : h("span", { class: "score", title: "score of the search" }, neighbor.score.toFixed(3)),
    neighbor.licence ? h("span", { class: "licence" }, neighbor.licence) : null,
    artist ? h("span", { class: "artist" }, artist) : null,
  ];
  return h(
    "div",
    { class: "tile-text" },
    h("span", { class: "tile-caption", title: caption }, caption),
    h("span", { class: "tile-facts" }, ...facts),
  );
}
