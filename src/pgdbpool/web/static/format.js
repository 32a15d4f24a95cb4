"use strict";
// Numbers and times in few characters, and elements without HTML: nothing that was published can become markup.

const format = {
  count(value) {
    if (value >= 1e6) return (value / 1e6).toFixed(1) + " M";
    if (value >= 1e4) return (value / 1e3).toFixed(0) + " k";
    return Math.round(value).toLocaleString("en");
  },

  rate(value) {
    if (value === 0) return "0";
    return value < 10 ? value.toFixed(1) : format.count(value);
  },

  bytes(value) {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (value < 1000) return `${value < 10 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
      value /= 1024;
    }
    return `${value.toFixed(1)} TB`;
  },

  // A duration in seconds.
  time(value) {
    if (value === null || value === undefined) return "–";
    if (value <= 0) return "0";
    if (value < 1e-3) return `${Math.max(1, Math.round(value * 1e6))} µs`;
    if (value < 0.01) return `${+(value * 1e3).toFixed(1)} ms`;
    if (value < 1) return `${Math.round(value * 1e3)} ms`;
    if (value < 10) return `${+value.toFixed(1)} s`;
    if (value < 120) return `${Math.round(value)} s`;
    if (value < 7200) return `${Math.round(value / 60)} min`;
    if (value < 172800) return `${Math.round(value / 3600)} h`;
    return `${Math.round(value / 86400)} days`;
  },

  clock(seconds) {
    const date = new Date(seconds * 1000);
    const time = date.toLocaleTimeString("en-GB");
    return Date.now() / 1000 - seconds < 43200 ? time : `${date.toLocaleDateString("en-GB")} ${time}`;
  },

  many(count, one, several) {
    return `${format.count(count)} ${count === 1 ? one : several}`;
  },
};

// What an object has under a name that comes from outside. A group may be called "constructor".
function own(object, name) {
  return Object.hasOwn(object, name) ? object[name] : undefined;
}

// An element: h("p.note", {id: "x"}, "text", child, ...).
function h(kind, attributes, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Write only what changes, so that a selection or a screen reader is not disturbed once a second.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// One child for each item, kept for as long as there is an item of its key, in the order of the items.
function keep(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let child = old.get(name);
    if (child) {
      old.delete(name);
    } else {
      child = make(item);
      child.dataset.key = name;
    }
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
    update(child, item);
  }
  for (const child of old.values()) child.remove();
}

// The time that a share of what was counted took at most: places are powers of two, see pgdbpool.core.times. Within a
// place it is supposed to be spread evenly. `prompt` took no time at all.
function quantile(counts, share, prompt) {
  const total = counts.reduce((sum, [, count]) => sum + count, 0) + prompt;
  if (total === 0) return null;
  const rank = share * total;
  let done = prompt;
  if (rank <= done) return 0;
  for (const [place, count] of counts) {
    if (done + count >= rank) {
      const low = place === 0 ? 0 : 2 ** (place - 21);
      const high = 2 ** (Math.min(place, 30) - 20);
      return low + ((high - low) * (rank - done)) / count;
    }
    done += count;
  }
  return null;
}
