// Colours of the heat map. The style sheet has the ends and the middle of the scale for each colour scheme.

const STOPS = ["--heat-low", "--heat-middle", "--heat-high"];

/** The range of the colours: that of the values, widened to tenths. */
export function scaleOf(values) {
  const low = Math.floor(Math.min(...values) * 10) / 10;
  const high = Math.ceil(Math.max(...values) * 10) / 10;
  return { low, high: high > low ? high : low + 0.1 };
}

/** Gives a cell its colour, and black or white letters, of which one always has a contrast of 4.5 or more. */
export function paint(cell, value, { low, high }) {
  const colour = mixed(stops(), Math.min(1, Math.max(0, (value - low) / (high - low))));
  cell.style.backgroundColor = `rgb(${colour.join(" ")})`;
  // A luminance of 0.179 has the same contrast, 4.58, to black and to white (WCAG 2.2, contrast ratio).
  cell.style.color = luminance(colour) > 0.179 ? "#000" : "#fff";
}

export function paintRamp(ramp) {
  ramp.style.backgroundImage = `linear-gradient(to right, ${STOPS.map((name) => `var(${name})`).join(", ")})`;
}

function stops() {
  const style = getComputedStyle(document.documentElement);
  return STOPS.map((name) => {
    const number = parseInt(style.getPropertyValue(name).trim().slice(1), 16);
    return [number >> 16, (number >> 8) & 255, number & 255];
  });
}

function mixed(colours, share) {
  const place = Math.min(colours.length - 2, Math.floor(share * (colours.length - 1)));
  const part = share * (colours.length - 1) - place;
  return colours[place].map((value, channel) => Math.round(value + part * (colours[place + 1][channel] - value)));
}

function luminance(colour) {
  const [red, green, blue] = colour.map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
