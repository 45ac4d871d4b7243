/** Painting: one request at a time, its progress, and its end. */

import { ApiError, ask, events, sentence } from "./api.js";
import { byId, count, say } from "./dom.js";
import { beginRun, took } from "./runs.js";
import { holdSeed, isSeedHeld, preferExemplars, requestBody, restore, showSeed } from "./settings.js";
import { exemplarsHere, leftOutHere, onChange, state } from "./state.js";
import { showTab } from "./tabs.js";

/** @type {AbortController|null} of the request under way */
let underWay = null;
/** Seed of the newest run: what is compared with it is painted with the same one. */
let lastSeed = null;
let onKeyRefused = () => {};

/** @param {() => void} refused told when the service no longer takes the key */
export function startPaint(refused) {
  onKeyRefused = refused;
  byId("paint").addEventListener("submit", (event) => {
    event.preventDefault();
    paint();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    // While an input method composes a character, Enter chooses it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("paint").requestSubmit();
  });
  // A field that is closed away cannot say what is wrong with it.
  byId("settings").addEventListener("invalid", () => (byId("settings").open = true), true);
  byId("cancel").addEventListener("click", () => underWay?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") underWay?.abort();
  });
  holdSeedForComparisons();
}

/** A database that is swapped, and a neighbour that goes, are seen only if the seed stays. */
function holdSeedForComparisons() {
  let before = [state.database, 0, 0];
  onChange(() => {
    const now = [state.database, leftOutHere().length, exemplarsHere().length];
    const [wasSwapped, leavesOut, exemplars] = [now[0] !== before[0], now[1] !== before[1], now[2] - before[2]];
    if (!wasSwapped && exemplars > 0) preferExemplars();
    before = now;
    if (!(wasSwapped || leavesOut) || lastSeed === null) return;
    if (!isSeedHeld()) holdSeed(lastSeed);
    say(byId("database-hint"), wasSwapped ? `Seed ${byId("seed").value} is held: only the database changes.` : "");
  });
}

async function paint() {
  if (underWay !== null) return;
  const body = requestBody();
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  underWay = new AbortController();
  busy(true);
  showTab("pictures", false);
  const actions = {
    onAgain: () => again(run, body),
    onHold: (seed) => {
      holdSeed(seed);
      say(byId("status"), `Seed ${seed} is held.`);
    },
    onProblem: (problem) => say(byId("error"), problem),
  };
  const run = beginRun(body, actions);
  // On a phone, the pictures hang below the form.
  if (!matchMedia("(min-width: 56rem)").matches) byId("content").scrollIntoView();
  try {
    await receive(run, body, underWay.signal);
    run.finish(seconds());
    lastSeed = run.seed;
    showSeed(lastSeed);
    say(byId("status"), `${count(body.n, "picture")} painted in ${took(seconds())}.`);
  } catch (error) {
    run.drop();
    failed(error);
  } finally {
    underWay = null;
    busy(false);
  }
}

/** Reads the stream until all pictures are there. */
async function receive(run, body, signal) {
  const response = await ask("v1/images/generations", { method: "POST", json: body, signal });
  const views = body.n * (body.partial_images + 1);
  let [seen, done] = [0, 0];
  for await (const { event, data } of events(response)) {
    if (event === "error") throw new ApiError(sentence(data.error.message), 500);
    if (event === "image_generation.partial_image") run.partial(data.index, data.b64_json);
    if (event === "image_generation.completed") {
      run.complete(data.index, data);
      done += 1;
    }
    seen += 1;
    byId("progress").value = Math.min(1, seen / views);
    if (seen % body.n === 0 && done === 0) say(byId("status"), `Painting: ${Math.round((100 * seen) / views)} %`);
  }
  if (done < body.n) throw new ApiError("The answer ended before the pictures were done: try again.", 0);
}

/** The same settings and seed, with what is pinned and left out now. */
function again(run, body) {
  if (underWay !== null) return;
  restore(body);
  if (exemplarsHere().length > 0) preferExemplars();
  holdSeed(run.seed);
  say(byId("database-hint"), "");
  paint();
}

function failed(error) {
  if (error.name === "AbortError") {
    say(byId("status"), "Cancelled.");
    return;
  }
  say(byId("status"), "");
  if (!(error instanceof ApiError)) {
    say(byId("error"), "Something is wrong with this page: load it again.");
    throw error;
  }
  if (error.status === 401) onKeyRefused(error.message);
  say(byId("error"), error.message);
  byId("error").scrollIntoView({ block: "nearest" });
}

function busy(is) {
  const hadFocus = [byId("go"), byId("cancel")].includes(document.activeElement);
  byId("go").hidden = is;
  byId("cancel").hidden = !is;
  byId("progress").hidden = !is;
  byId("actions").classList.toggle("busy", is);
  byId("progress").removeAttribute("value"); // it moves without a figure until the first view is there
  if (hadFocus) byId(is ? "cancel" : "go").focus();
  if (is) {
    say(byId("error"), "");
    say(byId("status"), "Looking up neighbours…");
  }
}
