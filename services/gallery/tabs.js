/** Tabs, as the ARIA authoring practices have them: one stop for Tab, arrows between them. */

import { byId } from "./dom.js";

const NAMES = ["pictures", "search", "databases"];

/** @param {string} name @param {boolean} focus */
export function showTab(name, focus = true) {
  for (const own of NAMES) {
    const tab = byId(`tab-${own}`);
    tab.setAttribute("aria-selected", String(own === name));
    tab.tabIndex = own === name ? 0 : -1;
    byId(`panel-${own}`).hidden = own !== name;
  }
  if (focus) byId(`tab-${name}`).focus();
}

export function startTabs() {
  for (const [place, name] of NAMES.entries()) {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => showTab(name));
    tab.addEventListener("keydown", (event) => {
      const last = NAMES.length - 1;
      const to = {
        ArrowRight: place === last ? 0 : place + 1,
        ArrowLeft: place === 0 ? last : place - 1,
        Home: 0,
        End: last,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      showTab(NAMES[to]);
    });
  }
}
