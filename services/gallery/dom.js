/** Elements without markup: texts become text nodes, so nothing that a stranger wrote is ever read as HTML. */

/** @param {string} id */
export const byId = (id) => document.getElementById(id);

/**
 * An element.
 * @param {string} tag
 * @param {Object<string, any>} properties `class`; `on…` are listeners; names with a dash, and `role`, are attributes.
 * @param {...(Node|string|null)} children
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Shows a text, or nothing. An alert is read aloud only if its text changes. */
export function say(element, text) {
  element.textContent = text;
}

/** 1 → "1 row", 2 → "2 rows". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
