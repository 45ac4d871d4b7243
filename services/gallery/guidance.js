/** Guidance: sliders of the chosen kind of model, and the settings that its paper reports. */

import { byId, h } from "./dom.js";

const RDM = {
  sliders: [{ name: "scale", label: "Scale s", min: 0, max: 10, step: 0.25, value: 2 }],
  presets: [
    { label: "1", values: { scale: 1 }, about: "No guidance: as the paper paints FFHQ." },
    { label: "1.5", values: { scale: 1.5 }, about: "The paper's best FID on ImageNet." },
    { label: "2", values: { scale: 2 }, about: "The paper's ImageNet samples." },
    { label: "2.5", values: { scale: 2.5 }, about: "The paper's pictures for words and styles." },
  ],
};
const REIMAGEN = {
  kinds: { interleaved: "interleaved", weighted: "weighted", joint: "joint", plain: "none" },
  sliders: [
    { name: "text_weight", label: "Text weight", min: 0, max: 40, step: 0.25, value: 2 },
    { name: "neighbor_weight", label: "Neighbour weight", min: 0, max: 40, step: 0.25, value: 2 },
    { name: "eta", label: "Share of text η", min: 0, max: 1, step: 0.05, value: 0.5 },
  ],
  presets: [
    {
      label: "gentle",
      values: { kind: "interleaved", text_weight: 2, neighbor_weight: 2, eta: 0.5 },
      about: "For small models and few steps.",
    },
    {
      label: "entities",
      values: { kind: "interleaved", text_weight: 30, neighbor_weight: 30, eta: 0.5 },
      about: "The paper's EntityDrawBench: weight 30 for both, 256 steps.",
    },
    {
      label: "scenes",
      values: { kind: "joint", text_weight: 1.25 },
      about: "The paper's COCO and WikiImages: ordinary guidance.",
    },
    { label: "none", values: { kind: "plain" }, about: "One pass of the network a step." },
  ],
};
const USES = {
  interleaved: ["text_weight", "neighbor_weight", "eta"],
  weighted: ["text_weight", "neighbor_weight", "eta"],
  joint: ["text_weight"],
  plain: [],
};

let shown = RDM;
let values = {};

/** Shows the controls of a model. @param {{kind: string, guidance: string[]}} model */
export function showGuidance(model) {
  shown = model.kind === "rdm" ? RDM : REIMAGEN;
  values = Object.fromEntries(shown.sliders.map((slider) => [slider.name, slider.value]));
  values.kind = model.guidance[0];
  build(model);
  refresh();
}

/** As requests have it. */
export function guidanceBody() {
  if (shown === RDM) return { kind: values.kind, scale: values.scale };
  return Object.fromEntries(["kind", ...USES[values.kind]].map((name) => [name, values[name]]));
}

/** Sets what a request had. */
export function setGuidance(body) {
  Object.assign(values, body);
  refresh();
}

function build(model) {
  const presets = shown.presets.map((preset) =>
    h(
      "button",
      { type: "button", class: "preset", title: preset.about, onclick: () => setGuidance(preset.values) },
      preset.label,
    ),
  );
  const group = h("div", { class: "line wrap", role: "group", "aria-label": "Settings of the paper" }, ...presets);
  const parts = [group, h("p", { class: "hint", id: "guidance-hint" })];
  if (shown === REIMAGEN) {
    const kinds = model.guidance.map((kind) => h("option", { value: kind }, shown.kinds[kind] ?? kind));
    const select = h("select", { id: "guidance-kind", onchange: () => setGuidance({ kind: select.value }) }, ...kinds);
    parts.push(h("div", { class: "field" }, h("label", { htmlFor: "guidance-kind" }, "Kind"), select));
  }
  for (const slider of shown.sliders) {
    const id = `guidance-${slider.name}`;
    const input = h("input", { id, type: "range", min: slider.min, max: slider.max, step: slider.step });
    input.addEventListener("input", () => setGuidance({ [slider.name]: Number(input.value) }));
    const label = h("label", { htmlFor: id }, slider.label);
    parts.push(h("div", { class: "field slider" }, label, h("output", { id: `${id}-value`, htmlFor: id }), input));
  }
  byId("guidance").replaceChildren(h("legend", {}, "Guidance"), ...parts);
}

function refresh() {
  if (shown === REIMAGEN) byId("guidance-kind").value = values.kind;
  for (const slider of shown.sliders) {
    const input = byId(`guidance-${slider.name}`);
    input.value = values[slider.name];
    byId(`guidance-${slider.name}-value`).textContent = String(values[slider.name]);
    input.disabled = shown === REIMAGEN && !USES[values.kind].includes(slider.name);
  }
  const isNow = (preset) => Object.entries(preset.values).every(([name, value]) => values[name] === value);
  const buttons = byId("guidance").querySelectorAll(".preset");
  shown.presets.forEach((preset, place) => buttons[place].setAttribute("aria-pressed", String(isNow(preset))));
  byId("guidance-hint").textContent = shown.presets.find(isNow)?.about ?? "Your own setting.";
}
