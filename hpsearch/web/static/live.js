// Keeps a page current: asks for its parts and figures again and again, and replaces only what has changed.
"use strict";

const known = { tag: null, parts: {}, figures: {}, period: 2, failures: 0, missing: 0, gone: false };
const PATIENCE = 60_000; // milliseconds that an answer may take
const GONE_AFTER = 3; // times in a row that it is not there: a proxy that restarts can say so once

function address() {
  const here = new URL(location.href);
  here.searchParams.set("live", "1");
  here.hash = "";
  return here;
}

async function look() {
  const headers = known.tag ? { "If-None-Match": known.tag } : {};
  try {
    const answer = await fetch(address(), { headers, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === 401) return location.reload(); // the session is over: the server shows the sign-in page
    known.missing = answer.status === 404 ? known.missing + 1 : 0;
    known.gone = known.missing === GONE_AFTER;
    if (known.gone) return say("This is no longer here.");
    if (answer.status !== 304) {
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      known.tag = take(await answer.json()) ? answer.headers.get("ETag") : null;
    }
    known.failures = 0;
    say("");
  } catch {
    known.failures += 1;
    say("The dashboard does not answer; trying again.");
  }
}

// Whether all of it could be taken: what was refused has to come once more.
function take(news) {
  known.period = news.period_seconds;
  let all = true;
  for (const [name, part] of Object.entries(news.parts)) {
    if (known.parts[name] === part.digest) continue;
    if (replace(name, part.content)) known.parts[name] = part.digest;
    else all = false;
  }
  for (const [name, { content, digest }] of Object.entries(news.figures)) {
    const place = document.querySelector(`[data-figure="${name}"]`);
    if (place && known.figures[name] !== digest && window.charts) {
      window.charts.draw(place, content);
      known.figures[name] = digest;
    }
  }
  return all;
}

// Puts new HTML in, unless somebody has marked text there; focus, scrolling, ticks and open details stay as they are.
function replace(name, html) {
  const part = document.querySelector(`[data-part="${name}"]`);
  if (!part) return true;
  const marked = getSelection();
  if (marked && !marked.isCollapsed && part.contains(marked.anchorNode)) return false;
  const before = remember(part);
  part.innerHTML = html;
  restore(part, before);
  return true;
}

const FOCUSABLE = "a[href], button, input, select, summary, [tabindex]";

function remember(part) {
  const boxes = [...part.querySelectorAll("input[type=checkbox]")];
  if (boxes.some((one) => one.checked !== one.defaultChecked)) part.dataset.chosen = "yes"; // by the person, not by us
  const things = [...part.querySelectorAll(FOCUSABLE)];
  const focus = things.indexOf(document.activeElement);
  return {
    focus,
    key: focus < 0 ? "" : keyOf(things[focus]),
    scroll: [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft),
    ticked: new Map(boxes.map((one) => [one.value, one.checked])),
    open: [...part.querySelectorAll("details")].map((one) => one.open),
  };
}

function restore(part, before) {
  part.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = before.scroll[index] || 0; });
  part.querySelectorAll("details").forEach((one, index) => { one.open = Boolean(before.open[index]); });
  if (part.dataset.chosen) {
    part.querySelectorAll("input[type=checkbox]").forEach((one) => { one.checked = before.ticked.get(one.value) || false; });
  }
  if (before.focus < 0) return;
  const things = [...part.querySelectorAll(FOCUSABLE)];
  const same = things.find((one) => keyOf(one) === before.key) || things[before.focus];
  if (same) same.focus({ preventScroll: true });
}

function keyOf(thing) {
  return [thing.tagName, thing.getAttribute("href"), thing.getAttribute("name"), thing.getAttribute("value"),
    thing.getAttribute("aria-label")].join(" ");
}

function say(text) {
  const place = document.getElementById("news");
  if (place && place.textContent !== text) place.textContent = text;
}

let timer = null;

async function keepLooking() {
  clearTimeout(timer);
  if (document.hidden || known.gone) return; // nobody looks: nobody asks
  await look();
  if (known.gone) return;
  timer = setTimeout(keepLooking, 1000 * known.period * Math.min(10, 2 ** known.failures));
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) keepLooking(); });
keepLooking();
