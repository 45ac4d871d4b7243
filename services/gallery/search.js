/** Search of the chosen database, by meaning or by keywords. */

import { ApiError, askJson } from "./api.js";
import { byId, count, say } from "./dom.js";
import { databaseName } from "./settings.js";
import { onChange, state } from "./state.js";
import { rowTile } from "./tiles.js";

const ROWS = 24;
/** @type {AbortController|null} of the search under way: a newer one takes its place */
let underWay = null;

export function startSearch() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  let shown = null;
  onChange(() => {
    const own = state.databases.find((database) => database.id === state.database);
    say(byId("search-where"), own ? `in ${own.name}` : "");
    byId("search-by").querySelector('[value="bm25"]').disabled = own?.bm25 === false;
    if (own?.bm25 === false) byId("search-by").value = "text";
    if (shown === state.database) return;
    // Rows of another database mean nothing in this one.
    shown = state.database;
    byId("found").replaceChildren();
    say(byId("search-status"), "");
  });
}

async function search() {
  underWay?.abort();
  const own = new AbortController();
  underWay = own;
  const [database, error] = [state.database, byId("search-error")];
  say(error, "");
  say(byId("search-status"), "Searching…");
  try {
    const answer = await askJson(`v1/databases/${encodeURIComponent(database)}/search`, {
      method: "POST",
      json: { [byId("search-by").value]: byId("search-text").value, k: ROWS },
      signal: own.signal,
    });
    const tiles = answer.rows.map((row) => rowTile(row, database, "found", (problem) => say(error, problem)));
    byId("found").replaceChildren(...tiles);
    say(byId("search-status"), `${count(tiles.length, "row")} of ${databaseName(database)}, best first.`);
  } catch (failure) {
    if (failure.name === "AbortError") return;
    say(byId("search-status"), "");
    if (!(failure instanceof ApiError)) throw failure;
    say(error, failure.message);
  }
}
