// Keeps the page current: every two seconds the same address is fetched again, and the sections that changed are put
// in place. The server renders and escapes; this script only moves its nodes. Without it the page still shows all.
"use strict";

(() => {
  const PERIOD_MS = 2000;
  const LONGEST_PAUSE_MS = 30000;
  const received = new Map(); // section -> its HTML as the server sent it
  let failures = 0;

  const sections = (page) => page.querySelectorAll("[data-live]");

  const ago = (seconds) => {
    if (seconds < 5) return "just now";
    if (seconds < 90) return `${Math.round(seconds)} s ago`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
    if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
    return `${Math.round(seconds / 86400)} d ago`;
  };

  const tellAges = (root) => {
    for (const moment of root.querySelectorAll("time[data-at]")) {
      if (!moment.title) moment.title = moment.textContent;
      const text = ago(Date.now() / 1000 - Number(moment.dataset.at));
      if (moment.textContent !== text) moment.textContent = text;
    }
  };

  // A race that the reader opened or closed stays so, and a table that was scrolled keeps its place.
  const keepState = (old, fresh) => {
    for (const details of fresh.querySelectorAll("details[id]")) {
      const before = old.querySelector(`#${CSS.escape(details.id)}`);
      if (before) details.open = before.open;
    }
    const before = old.querySelectorAll(".scroll");
    return () => fresh.querySelectorAll(".scroll").forEach((box, i) => {
      if (before[i]) box.scrollLeft = before[i].scrollLeft;
    });
  };

  const inUse = (section) => {
    const selection = document.getSelection();
    const selecting = selection && !selection.isCollapsed && section.contains(selection.anchorNode);
    return selecting || (section !== document.activeElement && section.contains(document.activeElement)
      && document.activeElement.matches(":focus-visible"));
  };

  const show = (page) => {
    for (const fresh of sections(page)) {
      const name = fresh.dataset.live;
      const html = fresh.innerHTML;
      const old = document.querySelector(`[data-live="${CSS.escape(name)}"]`);
      // Something that is being selected or walked through by keyboard waits for the next time.
      if (!old || received.get(name) === html || inUse(old)) continue;
      received.set(name, html);
      const node = document.adoptNode(fresh);
      const restore = keepState(old, node);
      old.replaceWith(node);
      restore();
    }
    document.title = page.title;
    tellAges(document);
  };

  const say = (state, text) => {
    const live = document.getElementById("live");
    if (!live) return;
    live.className = `live ${state}`;
    const words = live.querySelector("span");
    if (words.textContent !== text) words.textContent = text;
  };

  const update = async () => {
    let pause = PERIOD_MS;
    try {
      const answer = await fetch(location.pathname, { cache: "no-cache", signal: AbortSignal.timeout(10000) });
      if (answer.status === 401) {
        say("lost", "locked: open the address that regatta up printed");
      } else if (!answer.ok) {
        throw new Error(`status ${answer.status}`);
      } else {
        show(new DOMParser().parseFromString(await answer.text(), "text/html"));
        say("on", "live");
      }
      failures = 0;
    } catch {
      failures += 1;
      tellAges(document);
      say("lost", "the server does not answer: trying again");
      pause = Math.min(LONGEST_PAUSE_MS, PERIOD_MS * 2 ** Math.min(failures, 6)) * (0.5 + Math.random() / 2);
    }
    setTimeout(next, pause);
  };

  // A page that nobody looks at does not ask.
  const next = () => {
    if (document.visibilityState === "visible") update();
    else document.addEventListener("visibilitychange", next, { once: true });
  };

  for (const section of sections(document)) received.set(section.dataset.live, section.innerHTML);
  tellAges(document);
  next();
})();
