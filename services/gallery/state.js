/** What several parts of the page share. Whoever changes it calls `changed`; whoever shows it listens. */

/**
 * @typedef {{database: string, row: number, caption: string, licence: string, thumbnail: string|null}} Row
 * @typedef {{kind: "row", row: Row} | {kind: "picture", name: string, data: string}} Exemplar
 */

export const MAX_EXEMPLARS = 16;
const bus = new EventTarget();

export const state = {
  models: [],
  databases: [],
  /** @type {string} id of the database that is chosen */
  database: "",
  /** @type {Exemplar[]} */
  exemplars: [],
  /** @type {Row[]} */
  leftOut: [],
};

export const onChange = (listener) => bus.addEventListener("change", listener);
export const changed = () => bus.dispatchEvent(new Event("change"));

const same = (row) => (other) => other.database === row.database && other.row === row.row;

/** Rows mean something within their database only; those of another one wait until it is chosen again. */
export const exemplarsHere = () =>
  state.exemplars.filter((own) => own.kind === "picture" || own.row.database === state.database);
export const leftOutHere = () => state.leftOut.filter((row) => row.database === state.database);

export const isPinned = (row) => state.exemplars.some((own) => own.kind === "row" && same(row)(own.row));
export const isLeftOut = (row) => state.leftOut.some(same(row));

/** @returns {string} what is wrong, or nothing */
export function addExemplar(exemplar) {
  if (exemplar.kind === "row" && isPinned(exemplar.row)) return "";
  if (exemplarsHere().length >= MAX_EXEMPLARS) return `At most ${MAX_EXEMPLARS} exemplars: take one away first.`;
  if (exemplar.kind === "row") state.leftOut = state.leftOut.filter((own) => !same(exemplar.row)(own));
  state.exemplars = [...state.exemplars, exemplar];
  changed();
  return "";
}

export function removeExemplar(exemplar) {
  state.exemplars = state.exemplars.filter((own) => own !== exemplar);
  changed();
}

/** @returns {string} what is wrong, or nothing */
export function togglePin(row) {
  if (!isPinned(row)) return addExemplar({ kind: "row", row });
  state.exemplars = state.exemplars.filter((own) => own.kind !== "row" || !same(row)(own.row));
  changed();
  return "";
}

/** What is left out cannot be painted after. */
export function toggleLeftOut(row) {
  if (isLeftOut(row)) {
    state.leftOut = state.leftOut.filter((own) => !same(row)(own));
  } else {
    state.leftOut = [...state.leftOut, row];
    state.exemplars = state.exemplars.filter((own) => own.kind !== "row" || !same(row)(own.row));
  }
  changed();
}
