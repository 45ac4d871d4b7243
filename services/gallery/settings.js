/** The form's settings: what the models allow, and what a request says. */

import { exemplarBodies } from "./exemplars.js";
import { guidanceBody, setGuidance, showGuidance } from "./guidance.js";
import { byId, count, h } from "./dom.js";
import { changed, exemplarsHere, leftOutHere, onChange, state } from "./state.js";

/** What strategies do: of RDM (ξ of its paper), then of Re-Imagen. */
const STRATEGIES = {
  neighbors: ["neighbours", "The nearest rows of your words."],
  text_and_neighbors: ["words and neighbours", "Your words themselves, and their nearest rows."],
  text: ["words alone", "Your words themselves, and no row. Best for what no database has."],
  image: ["neighbours of a picture", "The nearest rows of one picture that you give."],
  class_pool: ["pool of a class", "Rows next to each other, drawn from a pool for “an image of a …”."],
  pseudo_query: ["typical of the database", "No words: a row is drawn, and its neighbours with it."],
  exemplars: ["exemplars", "Exactly what you pinned or gave."],
  bm25: ["keywords", "Rows whose captions share your words (BM25)."],
  clip: ["meaning", "Rows whose pictures are nearest to your words (CLIP)."],
  none: ["no neighbours", "Your words alone, without the database."],
};
const WITHOUT_COUNT = ["text", "exemplars", "none"];
const WITH_EXEMPLARS = ["", "exemplars", "image"];

/** What a database holds. The service counts rows of whole databases: of a view, it says which rows belong to it. */
export function contents(database) {
  if (database.version === null) return "not built yet";
  const where = Object.entries(database.where).map(([column, values]) => `${column}: ${values.join(", ")}`);
  return where.length > 0 ? where.join("; ") : count(database.rows, "row");
}

export const model = () => state.models.find((own) => own.id === byId("model").value);
export const databaseName = (id) => state.databases.find((own) => own.id === id)?.name ?? id;

/** Neighbours that are wanted, also while the database has fewer rows. */
let wantedNeighbors = 4;

export function startSettings() {
  byId("num-neighbors").addEventListener("input", () => {
    wantedNeighbors = byId("num-neighbors").value;
  });
  byId("model").addEventListener("change", () => showModel());
  byId("strategy").addEventListener("change", showStrategy);
  byId("prompt").addEventListener("input", showOwnSettings);
  byId("steps").addEventListener("input", showSteps);
  byId("database").addEventListener("change", () => {
    state.database = byId("database").value;
    changed();
  });
  byId("seed").addEventListener("input", () => {
    byId("seed-held").checked = true;
  });
  byId("seed-held").addEventListener("change", () => byId("seed").focus());
  onChange(() => {
    showStrategy();
    if (document.activeElement !== byId("num-neighbors")) showNeighbors(wantedNeighbors);
  });
}

/** Fills the choices anew, and keeps what is chosen if it is still there. */
export function showChoices() {
  const options = (entries, label) => entries.map((own) => h("option", { value: own.id }, label(own)));
  const chosen = byId("model").value;
  byId("model").replaceChildren(...options(state.models, (own) => `${own.id} · ${own.size}`));
  if (state.models.some((own) => own.id === chosen)) byId("model").value = chosen;
  else if (state.models.length > 0) showModel();
  const ready = state.databases.filter((own) => own.version !== null);
  byId("database").replaceChildren(...options(ready, (own) => `${own.name} · ${contents(own)}`));
  if (!ready.some((own) => own.id === state.database)) state.database = ready[0]?.id ?? "";
  byId("database").value = state.database;
  changed();
}

/** @param {string} id */
export function chooseDatabase(id) {
  byId("database").value = id;
  byId("database").dispatchEvent(new Event("change"));
}

function showModel() {
  const own = model();
  const automatic = h("option", { value: "" }, "automatic");
  const named = own.strategies.map((name) => h("option", { value: name }, STRATEGIES[name]?.[0] ?? name));
  byId("strategy").replaceChildren(automatic, ...named);
  showNeighbors(own.num_neighbors);
  byId("steps").max = Math.min(250, own.max_steps);
  byId("steps").value = own.default_steps;
  showSteps();
  showGuidance(own);
  showStrategy();
}

/** @param {number|string} wanted */
function showNeighbors(wanted) {
  wantedNeighbors = wanted;
  const rows = state.databases.find((own) => own.id === state.database)?.rows || Infinity;
  byId("num-neighbors").value = Math.min(wanted, rows);
}

const showSteps = () => {
  byId("steps-value").textContent = byId("steps").value;
};

function showStrategy() {
  const [name, given] = [byId("strategy").value, exemplarsHere().length];
  const paintsWords = model()?.kind === "reimagen";
  const automatic = given
    ? `After your exemplars${paintsWords ? " and your words" : ": the words are not used"}.`
    : "Neighbours of your words; without words, what is typical of the database.";
  byId("strategy-hint").textContent = name === "" ? automatic : (STRATEGIES[name]?.[1] ?? "");
  showOwnSettings();
  byId("num-neighbors").disabled = WITHOUT_COUNT.includes(name) || (name === "" && given > 0);
  const isUsed = WITH_EXEMPLARS.includes(name);
  byId("chips").classList.toggle("unused", given > 0 && !isUsed);
  byId("exemplars-hint").textContent =
    given === 0
      ? "Drop or paste a picture here, or pin a neighbour."
      : isUsed
        ? name === "" || name === "exemplars"
          ? automatic
          : STRATEGIES[name][1]
        : `Not used by the strategy “${STRATEGIES[name][0]}”: choose automatic.`;
}

/** The strategy that a request comes to: without a name, an RDM's service chooses by what there is. */
function comesTo() {
  const name = byId("strategy").value;
  if (name !== "" || model()?.kind !== "rdm" || exemplarsHere().length > 0) return name;
  return byId("prompt").value.trim() === "" ? "pseudo_query" : "neighbors";
}

/** Settings that one strategy alone has. */
const OWN_SETTINGS = { pseudo_query: "top-m", class_pool: "pool-size" };

function showOwnSettings() {
  for (const [strategy, id] of Object.entries(OWN_SETTINGS)) {
    byId(`${id}-field`).hidden = byId(id).disabled = strategy !== comesTo();
  }
}

/** Pinning something says that it is wanted: a strategy that would ignore it makes way. */
export function preferExemplars() {
  if (WITH_EXEMPLARS.includes(byId("strategy").value)) return;
  byId("strategy").value = "";
  showStrategy();
}

export const isSeedHeld = () => byId("seed-held").checked;

/** @param {number} seed */
export function holdSeed(seed) {
  byId("seed").value = seed;
  byId("seed-held").checked = true;
}

/** Shows which seed was drawn, without holding it. */
export function showSeed(seed) {
  if (!isSeedHeld()) byId("seed").value = seed;
}

/** What `POST /v1/images/generations` is sent. Where the model's usual value stands, the service may choose. */
export function requestBody() {
  const [own, strategy] = [model(), byId("strategy").value];
  const body = {
    prompt: byId("prompt").value.trim(),
    model: own.id,
    n: byId("count").valueAsNumber,
    stream: true,
    partial_images: 3,
    steps: byId("steps").valueAsNumber,
    solver: byId("solver").value,
    guidance: guidanceBody(),
  };
  if (strategy !== "") body.strategy = strategy;
  if (strategy !== "none" && state.database !== "") body.database = state.database;
  if (!byId("top-m").disabled) body.top_m = Number(byId("top-m").value);
  if (!byId("pool-size").disabled) body.pool_size = byId("pool-size").valueAsNumber;
  if (!byId("num-neighbors").disabled) body.num_neighbors = byId("num-neighbors").valueAsNumber;
  if (isSeedHeld() && byId("seed").value !== "") body.seed = byId("seed").valueAsNumber;
  if (WITH_EXEMPLARS.includes(strategy) && exemplarsHere().length > 0) body.exemplars = exemplarBodies();
  if (leftOutHere().length > 0) body.without = leftOutHere().map((row) => row.row);
  return body;
}

/** Sets the form to what a request said; exemplars, and what is left out, stay as they are now. */
export function restore(body) {
  if (body.model !== byId("model").value) {
    byId("model").value = body.model;
    showModel();
  }
  byId("prompt").value = body.prompt;
  byId("strategy").value = body.strategy ?? "";
  byId("count").value = body.n;
  byId("steps").value = body.steps;
  showSteps();
  byId("solver").value = body.solver;
  if (body.top_m !== undefined) byId("top-m").value = body.top_m;
  if (body.pool_size !== undefined) byId("pool-size").value = body.pool_size;
  if (body.num_neighbors !== undefined) showNeighbors(body.num_neighbors);
  setGuidance(body.guidance);
  if (body.database !== undefined && body.database !== state.database) chooseDatabase(body.database);
  showStrategy();
}
