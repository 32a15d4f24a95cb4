"use strict";
// Asks for the news once a second while somebody looks, and shows them.

const RECENT = 10; // s that rates and shares are about
const LATELY = 30; // s that waits and times in use are about
const ON_TIME = 2.5; // s after which every process has told of a sample that has ended

const charts = {
  rate: new Chart("rate", "Leases per second by server", format.rate, 0),
  wait: new Chart("wait", "What 99 of 100 callers waited at most, by group", format.time, 4, 1e-3),
  use: new Chart("use", "What 99 of 100 leases lasted at most, by group", format.time, 4, 1e-3),
};
const element = (id) => document.getElementById(id);

let samples = new Map();
let application = new URLSearchParams(location.search).get("app") || "";
let answered = 0;

// -- asking ---------------------------------------------------------------------------------------------------------

async function ask() {
  const newest = Math.max(0, ...samples.keys());
  const since = newest ? newest - 6 : 0;
  const response = await fetch(`data?since=${since}&app=${encodeURIComponent(application)}`, { cache: "no-store" });
  if (response.status === 401) return location.reload();
  if (!response.ok) throw new Error((await response.text()).trim() || `${response.status} ${response.statusText}`);
  show(await response.json());
}

async function go() {
  while (true) {
    if (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
    try {
      await ask();
      answered = Date.now();
    } catch (error) {
      const since = answered ? ` for ${format.time((Date.now() - answered) / 1000)}` : "";
      verdict("bad", [`No news${since}: ${error.message}. Trying again.`]);
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

// -- the last minutes -----------------------------------------------------------------------------------------------

function remember(answer) {
  for (const [at, groups, endpoints] of answer.summary.samples) samples.set(at, { at, groups, endpoints });
  const oldest = answer.now - answer.step * answer.history;
  for (const at of samples.keys()) if (at < oldest) samples.delete(at);
}

// The beginnings of all samples that are complete, also of those in which nothing was told.
function times(answer) {
  const { now, step, history } = answer;
  const last = Math.floor((now - ON_TIME) / step) * step - step;
  return Array.from({ length: history }, (_, i) => last - (history - 1 - i) * step);
}

function lately(answer, seconds) {
  return times(answer)
    .slice(-seconds / answer.step)
    .map((at) => samples.get(at))
    .filter(Boolean);
}

// For how many of the last seconds something is known: fewer where the application began a moment ago. All rates are
// about these.
function span(answer, seconds) {
  const first = Math.min(...samples.keys());
  const known = times(answer).slice(-seconds / answer.step).filter((at) => at >= first);
  return Math.max(1, known.length) * answer.step;
}

// requests, waits, timeouts, wait_time, use_time, wait_times, use_times, prompt: see pgdbpool.publish.GroupSample
const QUIET = [0, 0, 0, 0, 0, [], [], 0];

function added(several, name) {
  const total = { requests: 0, timeouts: 0, prompt: 0, waited: new Map(), used: new Map() };
  for (const sample of several) {
    const [requests, , timeouts, , , waited, used, prompt] = own(sample.groups, name) || QUIET;
    total.requests += requests;
    total.timeouts += timeouts;
    total.prompt += prompt;
    for (const [place, count] of waited) total.waited.set(place, (total.waited.get(place) || 0) + count);
    for (const [place, count] of used) total.used.set(place, (total.used.get(place) || 0) + count);
  }
  const sorted = (counts) => [...counts].sort((one, two) => one[0] - two[0]);
  return { ...total, waited: sorted(total.waited), used: sorted(total.used) };
}

function draw(answer) {
  const { groups, endpoints, events } = answer.summary;
  const at = times(answer);
  const first = Math.min(...samples.keys());
  const labels = endpoints.map((each) => each.stats.endpoint);
  const names = Object.keys(groups);
  const known = at.map((time) => (time < first ? null : samples.get(time) || { groups: {}, endpoints: {} }));
  const series = (value) => known.map((sample) => sample && value(sample));
  const rate = (label) => series((sample) => (own(sample.endpoints, label) || 0) / answer.step);
  const group = (value) => (name) => series((sample) => value(own(sample.groups, name) || QUIET));
  const waited = group(([, , , , , counts, , prompt]) => quantile(counts, 0.99, prompt));
  const used = group(([, , , , , , counts]) => quantile(counts, 0.99, 0));
  charts.rate.show(labels, [at, ...labels.map(rate)], events);
  charts.wait.show(names, [at, ...names.map(waited)], events);
  charts.use.show(names, [at, ...names.map(used)], events);
}

// -- all together ---------------------------------------------------------------------------------------------------

function show(answer) {
  const { summary } = answer;
  remember(answer);
  document.title = `${answer.name} – pgdbpool`;
  say(element("name"), answer.name);
  const age = summary.at ? Math.max(0, answer.now - summary.at) : null;
  const facts = [format.many(summary.workers, "process", "processes")];
  if (summary.pools !== summary.workers) facts.push(format.many(summary.pools, "pool", "pools"));
  if (age !== null) facts.push(age < 3 ? "live" : `as of ${format.time(age)} ago`);
  say(element("facts"), facts.join(" · "));
  choose(answer);
  judge(answer);
  showEndpoints(answer);
  showGroups(answer);
  showEvents(summary.events);
  showHolders(summary.holders);
  draw(answer);
}

function choose(answer) {
  const chooser = element("application");
  element("chooser").hidden = answer.names.length < 2;
  keep(chooser, answer.names, (name) => name, (name) => h("option", { value: name }, name), () => {});
  if (chooser.value !== answer.name) chooser.value = answer.name;
}

element("application").addEventListener("change", (event) => {
  application = event.target.value;
  history.replaceState(null, "", `?app=${encodeURIComponent(application)}`);
  samples = new Map();
  ask().catch(() => {});
});

function verdict(kind, sentences) {
  const box = element("verdict");
  box.className = `verdict ${kind}`;
  say(box, sentences.join(" "));
}

// What a human should know first. Numbers that change every second are left to the rest of the page.
function judge(answer) {
  const { summary } = answer;
  if (!summary.workers) {
    return verdict("waiting", [
      `No process publishes as “${answer.name}” now. Pools do once their configuration has status, or a page is mounted, and they are used.`,
    ]);
  }
  const bad = [];
  const warn = [];
  const lasts = summary.events.filter(({ event }) => event.kind.startsWith("failover-") || event.kind === "recovered");
  const last = lasts.at(-1);
  if (last && last.event.kind === "failover-started") bad.push("There is no primary that takes writes: a failover is under way.");
  for (const { stats } of summary.endpoints) {
    if (stats.fenced !== null) bad.push(`${stats.endpoint} is fenced: it says primary, and another server was promoted after it.`);
    else if (stats.health === "down") bad.push(`${stats.endpoint} is down.`);
    else if (stats.fault !== null && stats.health !== "up") bad.push(`${stats.endpoint}: ${stats.fault}.`);
    else if (stats.health === "suspect") warn.push(`${stats.endpoint} is suspect.`);
    if (stats.demoted) warn.push(`${stats.endpoint} is a primary that refuses writes.`);
  }
  const recent = lately(answer, LATELY);
  for (const [name, group] of Object.entries(summary.groups)) {
    if (added(recent, name).timeouts) bad.push(`Callers of group ${name} have waited in vain in the last half minute.`);
    else if (group.longest_wait >= 1) warn.push(`Callers of group ${name} wait.`);
    if (group.paused) warn.push(`Group ${name} is paused.`);
  }
  if (bad.length) return verdict("bad", [...bad, ...warn]);
  if (warn.length) return verdict("warn", warn);
  const count = summary.endpoints.length;
  return verdict("good", [`All is well: ${count === 1 ? "the server is up" : `all ${count} servers are up`}, and nobody waits for long.`]);
}

// -- servers --------------------------------------------------------------------------------------------------------

function showEndpoints(answer) {
  const recent = lately(answer, RECENT);
  const seconds = span(answer, RECENT);
  // One that is down does nothing, whatever it did some seconds ago: what the others do is all that is done.
  const down = new Set(answer.summary.endpoints.filter(({ stats }) => stats.health === "down").map(({ stats }) => stats.endpoint));
  const count = (label) => (down.has(label) ? 0 : recent.reduce((sum, sample) => sum + (own(sample.endpoints, label) || 0), 0));
  const total = answer.summary.endpoints.reduce((sum, each) => sum + count(each.stats.endpoint), 0);
  keep(element("endpoints"), answer.summary.endpoints, (each) => each.stats.endpoint, makeEndpoint, (card, each) => {
    const { stats, views } = each;
    const requests = count(stats.endpoint);
    const state = stats.fenced !== null ? "fenced" : stats.health;
    const part = (name) => card.querySelector(`.${name}`);
    const works = stats.health !== "down";
    mark(card, "class", `card endpoint ${state}`);
    const before = stats.last_role === "unknown" ? "role unknown" : `was ${stats.last_role}`;
    say(part("role"), stats.role === "unknown" ? before : stats.role);
    mark(part("role"), "class", `role badge ${stats.role}`);
    const heard = stats.answered === null ? "never heard of" : `heard of ${format.time(stats.answered)} ago`;
    const lasts = state === "down" && stats.down_for !== null ? ` for ${format.time(stats.down_for)}` : "";
    say(part("health"), `${state}${lasts} · ${heard}`);
    for (const name of ["work", "share", "percent"]) part(name).hidden = !works;
    say(part("rate"), format.rate(requests / seconds));
    const share = total ? Math.round((100 * requests) / total) : 0;
    mark(part("share"), "aria-valuenow", String(share));
    part("share").firstChild.style.width = `${share}%`;
    say(part("percent"), `${share} % of the work`);
    const facts = [
      ["in use", String(stats.leased)],
      ["open", `${stats.open}${stats.opening ? `, ${stats.opening} opening` : ""}`],
    ];
    if (works) facts.push(["answers in", format.time(stats.probe_time)]);
    if (stats.role === "standby") facts.push(["lag", stats.lag === null ? "unknown" : format.bytes(stats.lag)]);
    if (works && stats.share < 1) facts.push(["slow start", `${Math.round(stats.share * 100)} %`]);
    if (stats.weight !== 1) facts.push(["weight", String(stats.weight)]);
    if (stats.priority !== 0) facts.push(["priority", String(stats.priority)]);
    pairs(part("facts"), facts);
    const notes = [];
    if (stats.demoted) notes.push("Refuses writes.");
    if (stats.fenced !== null) notes.push(`Overtaken by ${stats.fenced}: not used.`);
    if (Object.keys(views).length > 1) {
      notes.push(`Processes differ: ${Object.entries(views).map(([view, many]) => `${many} see ${view}`).join("; ")}.`);
    }
    const tell = stats.last_error !== null && (state !== "up" || stats.last_error_age < 120);
    if (tell) notes.push(`${format.time(stats.last_error_age)} ago: ${stats.last_error}`);
    say(part("notes"), notes.join(" "));
    part("notes").hidden = notes.length === 0;
  });
}

function makeEndpoint({ stats }) {
  return h(
    "li",
    {},
    h("div.head", {}, h("i.dot", { "aria-hidden": "true" }), h("h3", {}, stats.endpoint), h("span.role")),
    h("p.health"),
    h("p.work", {}, h("b.rate"), " leases per second"),
    h("div.share", { role: "meter", "aria-label": `Share of the work of ${stats.endpoint}`, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "0" }, h("i")),
    h("p.percent"),
    h("dl.facts"),
    h("p.notes"),
  );
}

function pairs(list, facts) {
  keep(list, facts, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd")), (pair, [, value]) => say(pair.lastChild, value));
}

// -- groups ---------------------------------------------------------------------------------------------------------

const PARTS = ["leased", "idle", "opening"];

function showGroups(answer) {
  const recent = lately(answer, LATELY);
  const near = lately(answer, RECENT);
  const seconds = span(answer, RECENT);
  keep(element("groups"), Object.values(answer.summary.groups), (group) => group.group, makeGroup, (row, group) => {
    const lately = added(recent, group.group);
    const part = (name) => row.querySelector(`.${name}`);
    // The whole bar is the limit. What rests or is opened where callers are not sent now takes none of it: a group that is
    // full has a full bar.
    let left = Math.max(group.limit, group.leased, 1);
    const whole = left;
    for (const name of PARTS) {
      const shown = Math.min(group[name], left);
      left -= shown;
      row.querySelector(`.bar .${name}`).style.flexGrow = (shown / whole) * 1000;
    }
    row.querySelector(".bar .free").style.flexGrow = (left / whole) * 1000;
    mark(part("bar"), "aria-label", `${group.leased} in use, ${group.idle} idle, ${group.opening} opening, of ${group.limit}`);
    say(part("numbers"), `${group.leased} of ${group.limit}`);
    part("paused").hidden = !group.paused;
    const waiting = part("waiting");
    say(waiting, group.waiting ? `${format.count(group.waiting)} waiting` : "nobody waits");
    mark(waiting, "class", `waiting badge ${group.longest_wait >= 1 ? "bad" : group.waiting ? "warn" : "calm"}`);
    pairs(part("facts"), [
      ["leases/s", format.rate(added(near, group.group).requests / seconds)],
      ["wait, 99 %", format.time(quantile(lately.waited, 0.99, lately.prompt))],
      ["use, median", format.time(quantile(lately.used, 0.5, 0))],
      ["use, 99 %", format.time(quantile(lately.used, 0.99, 0))],
      ["time-outs", format.count(group.counters.timeouts)],
    ]);
    const { counters } = group;
    pairs(row.querySelector(".more dl"), [
      ["leases", counters.requests.toLocaleString("en")],
      ["waited for", counters.waits.toLocaleString("en")],
      ["turned away", counters.rejections.toLocaleString("en")],
      ["connects", counters.connects.toLocaleString("en")],
      ["failed connects", counters.connect_failures.toLocaleString("en")],
      ["rollbacks on return", counters.rollbacks.toLocaleString("en")],
      ["held too long", counters.leaks.toLocaleString("en")],
      ["longest lease now", format.time(group.longest_use)],
      ...Object.entries(counters.closed).map(([why, many]) => [`closed: ${why}`, many.toLocaleString("en")]),
    ]);
    const lanes = group.endpoints.map((lane) => `${lane.endpoint}: ${lane.leased} of ${lane.limit} in use${lane.live ? "" : ", not used now"}`);
    const most = group.configured_limit > group.limit ? [`${group.configured_limit} by the configuration`] : [];
    say(part("lanes"), [...lanes, ...most].join(" · "));
  });
}

function makeGroup(group) {
  return h(
    "li.card.group",
    {},
    h("div.head", {}, h("h3", {}, group.group), h("span.paused.badge.warn", {}, "paused"), h("span.waiting"), h("b.numbers")),
    h("div.bar", { role: "img" }, ...[...PARTS, "free"].map((name) => h(`i.${name}`))),
    h("dl.facts"),
    h("details.more", {}, h("summary", {}, "Since the start"), h("dl"), h("p.lanes")),
  );
}

// -- events and holders ---------------------------------------------------------------------------------------------

const SHOWN = 40;
const KINDS = {
  "endpoint-up": ["good", "up"],
  "endpoint-suspect": ["warn", "suspect"],
  "endpoint-down": ["bad", "down"],
  outage: ["warn", "no connects"],
  "outage-ended": ["good", "connects"],
  "role-changed": ["info", "role"],
  "failover-started": ["bad", "failover"],
  "failover-finished": ["good", "failover over"],
  recovered: ["good", "recovered"],
  fenced: ["bad", "fenced"],
  "leak-suspected": ["warn", "held long"],
  "leak-ended": ["good", "returned"],
};

function showEvents(events) {
  const latest = events.slice(-SHOWN).reverse();
  const list = element("events");
  const key = ({ event }) => `${event.at} ${event.kind} ${event.endpoint}`;
  const make = ({ event }) => {
    const [colour, word] = own(KINDS, event.kind) || ["warn", event.kind.replaceAll("-", " ")];
    const failover = event.kind.startsWith("failover-") ? ".failover" : "";
    return h(
      `li.${colour}${failover}`,
      {},
      h("time", { datetime: new Date(event.at * 1000).toISOString() }, format.clock(event.at)),
      h(`span.badge.${colour}`, {}, word),
      h("div", {}, h("p", {}, event.message, h("small")), ...(event.details ? [folded("Where", event.details)] : [])),
    );
  };
  keep(list, latest, key, make, (item, { event, pools }) => {
    const seconds = event.seconds === null ? "" : ` after ${format.time(event.seconds)}`;
    const seen = pools > 1 ? ` · seen by ${pools} pools` : "";
    say(item.querySelector("small"), event.message.includes(" after ") ? seen : seconds + seen);
  });
  list.classList.toggle("empty", latest.length === 0);
  if (latest.length === 0) keep(list, ["none"], (name) => name, () => h("li.none", {}, "Nothing has happened yet."), () => {});
}

function folded(title, text) {
  return h("details", {}, h("summary", {}, title), h("pre", { tabindex: "0", role: "group", "aria-label": title }, text));
}

function showHolders(holders) {
  const list = element("holders");
  const shown = holders.filter(({ holder }) => holder.since >= 0.05).slice(0, 12);
  const key = ({ pid, pool, holder }) => `${pid} ${pool} ${holder.connection} ${holder.endpoint} ${holder.thread}`;
  const make = ({ pid, pool, holder }) =>
    h(
      "li",
      {},
      h("b.since"),
      h("p.where"),
      h("p.who", {}, `${holder.group} on ${holder.endpoint} · ${holder.connection} · ${holder.thread}, ${pool}, process ${pid}`),
      folded("Where it is", ""),
    );
  keep(list, shown, key, make, (item, { holder }) => {
    say(item.querySelector(".since"), `${format.time(holder.since)}${holder.state && holder.state !== "unknown" ? ` · ${holder.state}` : ""}`);
    say(item.querySelector(".where"), holder.where.replace(/(?:\/[^\s/]+)*\/(?=[^\s/]+\/[^\s/]+:\d)/g, ""));
    mark(item.querySelector(".where"), "title", holder.where);
    const stack = [...(holder.stack || [])].join("\n");
    const checkout = [...(holder.checkout || [])].join("\n");
    say(item.querySelector("pre"), [stack, checkout && `Checked out at:\n${checkout}`].filter(Boolean).join("\n\n"));
    item.querySelector("details").hidden = !stack && !checkout;
  });
  if (shown.length === 0) keep(list, ["none"], (name) => name, () => h("li.none", {}, "Nobody has held one for longer than a moment."), () => {});
}

// -- light and dark -------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  say(element("theme"), `Theme: ${name}`);
}

function remembered() {
  try {
    return localStorage.getItem("pgdbpool-theme") || "system";
  } catch {
    return "system"; // the browser keeps nothing for us
  }
}

function redraw() {
  for (const chart of Object.values(charts)) if (chart.plot) chart.draw();
}

element("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(remembered()) + 1) % THEMES.length];
  try {
    localStorage.setItem("pgdbpool-theme", next);
  } catch {
    // for this once only
  }
  theme(next);
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

theme(THEMES.includes(remembered()) ? remembered() : "system");
go();
