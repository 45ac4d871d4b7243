/** The start: the key first, then what it may use. */

import { ApiError, askJson, key } from "./api.js";
import { inviteUpload, loadDatabases, startDatabases } from "./databases.js";
import { byId, say } from "./dom.js";
import { startExemplars } from "./exemplars.js";
import { startPaint } from "./paint.js";
import { startSearch } from "./search.js";
import { showChoices, startSettings } from "./settings.js";
import { state } from "./state.js";
import { startTabs } from "./tabs.js";

/** Keeps a key if it can be one: a header holds nothing but printable ASCII. */
function takeKey(text) {
  const isKey = /^[\x21-\x7e]+$/.test(text);
  if (isKey) key.set(text);
  return isKey;
}

/** Takes the key out of `#key=…` at once: an address is copied, and stays in the history. */
function takeKeyFromAddress() {
  const found = /^#key=(.+)$/.exec(location.hash);
  if (found === null) return false;
  history.replaceState(null, "", location.pathname + location.search);
  return takeKey(found[1]);
}

function askForKey(problem = "") {
  key.forget();
  byId("main").hidden = true;
  byId("forget-key").hidden = true;
  byId("key-form").hidden = false;
  say(byId("key-error"), problem);
  byId("key").focus();
}

/** Shows what the key may use, or asks for another one. */
async function open() {
  if (!key.get()) {
    askForKey();
    return;
  }
  const loading = await Promise.allSettled([loadModels(), loadDatabases()]);
  const failures = loading.filter((own) => own.status === "rejected").map((own) => own.reason);
  const strange = failures.find((error) => !(error instanceof ApiError));
  if (strange) throw strange;
  const refused = failures.find((error) => error.status === 401);
  if (refused) {
    askForKey("This key is not valid: enter another one.");
    return;
  }
  byId("key-form").hidden = true;
  byId("main").hidden = false;
  byId("forget-key").hidden = false;
  byId("go").disabled = state.models.length === 0;
  say(byId("error"), failures[0]?.message ?? "");
  if (state.databases.length === 0 && failures.length === 0) inviteUpload();
}

async function loadModels() {
  state.models = (await askJson("v1/models")).data;
  showChoices();
}

function start() {
  // A phone shows the prompt and the pictures first.
  byId("settings").open = matchMedia("(min-width: 56rem)").matches;
  startTabs();
  startSettings();
  startExemplars();
  startPaint(askForKey);
  startSearch();
  startDatabases();
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const isKey = takeKey(byId("key").value.trim());
    byId("key").value = "";
    say(byId("key-error"), isKey ? "" : "This is no API key: copy it whole.");
    if (isKey) open();
  });
  byId("forget-key").addEventListener("click", () => {
    key.forget();
    location.reload();
  });
  addEventListener("hashchange", () => takeKeyFromAddress() && location.reload());
  takeKeyFromAddress();
  open();
}

start();
