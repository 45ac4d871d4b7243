/** What was painted: each run with its pictures beside the neighbours that they were painted after. */

import { duration } from "./api.js";
import { byId, count, h } from "./dom.js";
import { setDragged } from "./exemplars.js";
import { databaseName } from "./settings.js";
import { addExemplar, isLeftOut, isPinned, onChange } from "./state.js";
import { givenTile, rowTile } from "./tiles.js";

/** Pictures stand in memory: what is older than this many runs is taken from the page. */
const MAX_RUNS = 30;
/** @type {WeakMap<Element, () => void>} */
const refreshers = new WeakMap();

onChange(() => {
  for (const run of document.querySelectorAll(".run")) refreshers.get(run)?.();
});

/**
 * A run that has begun.
 * @param {object} body of the request
 * @param {{onAgain: () => void, onHold: (seed: number) => void, onProblem: (problem: string) => void}} actions
 */
export function beginRun(body, actions) {
  const figures = Array.from({ length: body.n }, (_, place) => figure(body, place));
  const title = body.prompt || (body.exemplars ? "after exemplars" : "typical of the database");
  const facts = h("p", { class: "facts" }, describe(body));
  const again = h("button", { type: "button", class: "again", onclick: actions.onAgain, hidden: true });
  const head = h("header", {}, h("div", {}, h("h2", {}, title), facts), again);
  const waiting = h("p", { class: "hint" }, "Looking up neighbours…");
  const groups = h("div", {}, group(figures, waiting));
  const article = h("article", { class: "run", "aria-label": title, "aria-busy": "true" }, head, groups);
  byId("runs").prepend(article);
  byId("empty").hidden = true;
  while (byId("runs").children.length > MAX_RUNS) byId("runs").lastElementChild.remove();
  const answers = [];

  return {
    element: article,
    /** @type {number|null} of the first picture, once it is there */
    seed: null,
    /** A picture as it is foreseen. */
    partial(place, data) {
      waiting.textContent = "Painting after what was found…";
      figures[place]?.show(data, "foreseen");
    },
    complete(place, answer) {
      answers[place] = answer;
      figures[place]?.finish(answer, actions);
    },
    /** All pictures are there. */
    finish(seconds) {
      article.removeAttribute("aria-busy");
      const version = answers[0].version ? ` · version ${answers[0].version}` : "";
      facts.textContent = `${describe({ ...body, seed: answers[0].seed })} · ${seconds.toFixed(1)} s`;
      facts.title = `${answers[0].model}${version}`;
      groups.replaceChildren(...grouped(body, figures, answers, actions.onProblem));
      again.hidden = false;
      const refresh = () => showAgain(again, body, answers);
      refreshers.set(article, refresh);
      refresh();
      this.seed = answers[0].seed;
    },
    /** It came to nothing. */
    drop() {
      article.remove();
      byId("empty").hidden = byId("runs").children.length > 0;
    },
  };
}

/** How long a run takes, for people. */
export const took = (seconds) => (seconds < 10 ? `${seconds.toFixed(1)} seconds` : duration(Math.round(seconds)));

function figure(body, place) {
  const image = h("img", { alt: "", width: 192, height: 192, draggable: true, hidden: true });
  const caption = h("figcaption", {});
  const frame = h("div", { class: "frame waiting" }, image);
  const element = h("figure", {}, frame, caption);
  const name = body.prompt || "picture";
  const show = (data, what) => {
    image.src = `data:image/png;base64,${data}`;
    image.alt = `${name}, ${what}, ${place + 1} of ${body.n}`;
    image.hidden = false;
    frame.classList.remove("waiting");
    frame.classList.toggle("foreseen", what === "foreseen");
  };
  return {
    element,
    show,
    finish(answer, actions) {
      show(answer.b64_json, "painted");
      const exemplar = { kind: "picture", name: `${name} (${answer.seed})`, data: image.src };
      image.addEventListener("dragstart", () => setDragged(exemplar));
      const file = `${name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${answer.seed}.png`;
      caption.append(
        small(`Hold seed ${answer.seed}`, String(answer.seed), () => actions.onHold(answer.seed)),
        h("a", { class: "small", href: image.src, download: file, "aria-label": `Save picture ${place + 1}` }, "Save"),
        small(`Pin picture ${place + 1}`, "Pin", () => actions.onProblem(addExemplar(exemplar))),
      );
    },
  };
}

const small = (label, text, onclick) =>
  h("button", { type: "button", class: "small", onclick, "aria-label": label, title: label }, text);

function group(figures, beside) {
  const pictures = h("div", { class: "pictures" }, ...figures.map((own) => own.element));
  return h("div", { class: "group" }, pictures, h("div", { class: "beside" }, beside));
}

/** Pictures that have the same neighbours hang together, the neighbours once beside them. */
function grouped(body, figures, answers, onProblem) {
  const groups = new Map();
  answers.forEach((answer, place) => {
    const same = JSON.stringify(answer.neighbors.map((own) => [own.row, own.score]));
    groups.set(same, [...(groups.get(same) ?? []), place]);
  });
  return [...groups.values()].map((places) => {
    const beside = neighbors(body, answers[places[0]], onProblem);
    return group(places.map((place) => figures[place]), beside);
  });
}

function neighbors(body, answer, onProblem) {
  if (answer.neighbors.length === 0) return h("p", { class: "hint" }, "Painted without neighbours.");
  // What is no row stands in the order in which the request gave its pictures.
  const given = (body.exemplars ?? []).filter((own) => own.image !== undefined);
  const tiles = answer.neighbors.map((own) => {
    if (own.row !== null) return rowTile(own, body.database, "neighbor", onProblem);
    const picture = given.shift();
    if (picture === undefined) return givenTile(`the words “${body.prompt}”`);
    return givenTile(picture.caption || "your picture", picture.image);
  });
  const title = h("h3", {}, count(answer.neighbors.length, "neighbour"));
  return h("section", { "aria-label": "Neighbours" }, title, h("ul", { class: "tiles" }, ...tiles));
}

function describe(body) {
  const parts = [];
  if (body.database !== undefined) parts.push(databaseName(body.database));
  if (body.strategy) parts.push(body.strategy.replaceAll("_", " "));
  if (body.top_m !== undefined) parts.push(`top-m ${body.top_m}`);
  if (body.pool_size !== undefined) parts.push(`pool of ${body.pool_size}`);
  const { kind, scale, text_weight, neighbor_weight, eta } = body.guidance;
  if (kind === "classifier_free") parts.push(`s ${scale}`);
  else if (kind === "joint") parts.push(`joint, w ${text_weight}`);
  else if (kind !== "plain") parts.push(`${kind}, w ${text_weight} / ${neighbor_weight}, η ${eta}`);
  parts.push(count(body.steps, "step"));
  if (body.seed !== undefined) parts.push(`seed ${body.seed}`);
  return parts.join(" · ");
}

/** Says what another run would change. */
function showAgain(button, body, answers) {
  const rows = new Set(answers.flatMap((answer) => answer.neighbors.map((own) => own.row)));
  const here = [...rows].filter((row) => row !== null).map((row) => ({ database: body.database, row }));
  const [out, pinned] = [here.filter(isLeftOut).length, here.filter(isPinned).length];
  const change = pinned > 0 ? ` after ${pinned} pinned` : out > 0 ? ` without ${out}` : "";
  button.textContent = `Paint again${change}`;
  button.classList.toggle("primary", change !== "");
}
