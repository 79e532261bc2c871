"use strict";
(() => {
  // A button beside each command. Where a page may not write to the clipboard, it selects the text.
  const offerCopies = (place) => {
    for (const block of place.querySelectorAll(".command")) {
      block.querySelector(".copy")?.remove();
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        const text = block.querySelector("code");
        try {
          await navigator.clipboard.writeText(text.textContent);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(text);
          button.textContent = "Selected: press Ctrl+C";
        }
      });
      block.append(button);
    }
  };
  offerCopies(document);

  for (const figure of document.querySelectorAll("figure:has(.plot)")) {
    const spots = [...figure.querySelectorAll(".spot")];
    const inspector = figure.querySelector(".inspector");
    const readout = figure.querySelector(".readout");
    let pinned = null;

    const show = (spot) => {
      if (readout) readout.textContent = spot.getAttribute("aria-label");
      if (inspector) {
        const brief = document.getElementById(spot.dataset.target)?.querySelector(".brief");
        const shown = brief ? [...brief.cloneNode(true).childNodes] : [spot.getAttribute("aria-label")];
        inspector.replaceChildren(...shown);
        offerCopies(inspector);
      }
      for (const each of spots) each.classList.toggle("chosen", each === spot);
    };
    const pin = (spot) => {
      pinned = pinned === spot ? null : spot;
      show(spot);
    };

    // The chart is one stop of the Tab key; the arrow keys go from point to point, in the order of x.
    const place = (spot) => spot.getBoundingClientRect().left;
    const order = [...spots].sort((a, b) => place(a) - place(b));
    order.forEach((spot, number) => {
      const title = spot.querySelector("title");
      spot.setAttribute("aria-label", title.textContent);
      title.remove();
      spot.setAttribute("tabindex", number === 0 ? "0" : "-1");
      spot.addEventListener("pointerenter", () => pinned ?? show(spot));
      spot.addEventListener("focus", () => show(spot));
      spot.addEventListener("click", () => pin(spot));
      spot.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
        if (event.key === "Enter" || event.key === " ") pin(spot);
        else if (event.key === "Escape") pinned = null;
        else if (step === undefined) return;
        const next = step && order[number + step];
        if (next) {
          spot.setAttribute("tabindex", "-1");
          next.setAttribute("tabindex", "0");
          next.focus();
        }
        event.preventDefault();
      });
    });

    const buttons = [...figure.querySelectorAll(".legend button")];
    let alone = null;
    const only = (series) => {
      for (const part of figure.querySelectorAll("svg [data-series]")) {
        part.classList.toggle("dim", series !== null && part.dataset.series !== series);
      }
    };
    for (const button of buttons) {
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("pointerenter", () => only(button.dataset.series));
      button.addEventListener("pointerleave", () => only(alone));
      button.addEventListener("click", () => {
        alone = alone === button.dataset.series ? null : button.dataset.series;
        for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.series === alone));
        only(alone);
      });
    }
  }
})();
