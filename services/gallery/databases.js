/** Databases: which there are, and new ones of one's own pictures. */

import { ApiError, ask, askJson } from "./api.js";
import { byId, count, h, say } from "./dom.js";
import { captionOf } from "./exemplars.js";
import { chooseDatabase, contents, showChoices } from "./settings.js";
import { onChange, state } from "./state.js";
import { showTab } from "./tabs.js";

const POLL_MS = 1000;
const TAR = /\.(tar|tgz|tar\.gz|tar\.bz2|tar\.xz)$/i;
/** Jobs that are watched, so that none is watched twice. */
const watched = new Set();

export async function loadDatabases() {
  state.databases = (await askJson("v1/databases")).data;
  showChoices();
  // Builds that began before this page was loaded.
  for (const own of state.databases.filter((database) => database.version === null && !database.shared)) {
    const jobs = await askJson(`v1/databases/${encodeURIComponent(own.id)}/jobs`);
    if (jobs.length > 0 && ["queued", "running"].includes(jobs[0].state)) watch(own.id, jobs[0]);
  }
}

export function startDatabases() {
  onChange(show);
  byId("upload").addEventListener("submit", (event) => {
    event.preventDefault();
    upload();
  });
}

function show() {
  const entries = state.databases.map((own) => {
    const kind = own.shared ? "shared" : own.view_of ? `a view of ${own.view_of}` : "yours";
    const isChosen = own.id === state.database;
    const label = { "aria-label": `Paint from ${own.name}`, "aria-pressed": String(isChosen) };
    const use = h(
      "button",
      { type: "button", disabled: own.version === null, ...label },
      isChosen ? "Chosen" : "Paint from it",
    );
    use.addEventListener("click", () => {
      chooseDatabase(own.id);
      byId("databases").querySelector('[aria-pressed="true"]')?.focus();
    });
    const text = h("div", {}, h("strong", {}, own.name), h("span", { class: "facts" }, `${kind} · ${contents(own)}`));
    const buttons = h("div", { class: "line" }, own.shared ? null : removeButton(own), use);
    return h("li", {}, text, buttons);
  });
  byId("databases").replaceChildren(...entries);
}

function removeButton(own) {
  const what = own.view_of ? "the view" : "the database and its pictures";
  const onclick = () => {
    if (confirm(`Delete ${own.name}? It removes ${what} for everybody with your keys, and cannot be undone.`)) remove(own);
  };
  return h("button", { type: "button", class: "quiet", "aria-label": `Delete ${own.name}`, onclick }, "Delete");
}

async function remove(own) {
  say(byId("databases-error"), "");
  try {
    await ask(`v1/databases/${encodeURIComponent(own.id)}`, { method: "DELETE" });
    say(byId("databases-status"), `${own.name} is deleted.`);
    await loadDatabases();
    byId("databases-status").focus();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(byId("databases-error"), error.message);
  }
}

async function upload() {
  const [name, files] = [byId("upload-name").value, [...byId("upload-files").files]];
  const form = new FormData();
  form.append("name", name);
  if (files.length === 1 && TAR.test(files[0].name)) {
    form.append("archive", files[0]);
  } else {
    for (const file of files) form.append("images", file);
    if (byId("upload-captions").checked) form.append("captions", JSON.stringify(files.map((file) => captionOf(file.name))));
  }
  const button = byId("upload").querySelector("[type=submit]");
  say(byId("upload-error"), "");
  say(byId("upload-status"), `Sending ${count(files.length, "file")}…`);
  progress(null);
  button.disabled = true;
  try {
    const job = await askJson("v1/databases/upload", { method: "POST", form });
    byId("upload").reset();
    await watch(name, job);
  } catch (error) {
    failed(error);
  } finally {
    button.disabled = false;
  }
}

/** Shows how far a build is until it ends. */
async function watch(database, started) {
  if (watched.has(started.id)) return;
  watched.add(started.id);
  const path = `v1/databases/${encodeURIComponent(database)}/jobs/${encodeURIComponent(started.id)}`;
  try {
    let job = started;
    while (job.state === "queued" || job.state === "running") {
      const figures = job.total ? `: ${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : "";
      say(byId("upload-status"), `Building ${job.database}: ${job.stage || job.state}${figures}…`);
      progress(job.total ? job.done / job.total : null);
      job = await nextReport(path);
    }
    if (job.state === "failed") throw new ApiError(`${job.database} could not be built: ${job.message}`, 0);
    byId("upload-progress").hidden = true;
    await loadDatabases();
    const own = state.databases.find((entry) => entry.name === job.database && !entry.shared);
    say(byId("upload-status"), `${job.database} is ready: ${count(own?.rows ?? 0, "row")}.`);
  } catch (error) {
    failed(error);
  } finally {
    watched.delete(started.id);
  }
}

/** The next report; a service that is away for a moment, or asks to wait, is asked again. */
async function nextReport(path) {
  for (let tries = 0; ; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS * 2 ** Math.min(tries, 4)));
    try {
      return await askJson(path);
    } catch (error) {
      const isPassing = error instanceof ApiError && [0, 429, 503].includes(error.status);
      if (!isPassing || tries === 8) throw error;
    }
  }
}

function progress(share) {
  const bar = byId("upload-progress");
  bar.hidden = false;
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
}

function failed(error) {
  byId("upload-progress").hidden = true;
  say(byId("upload-status"), "");
  if (!(error instanceof ApiError)) throw error;
  say(byId("upload-error"), error.message);
}

/** Shows the tab of databases, for whoever has none to paint from. */
export function inviteUpload() {
  showTab("databases", false);
}
