// Search in a site that is read from a disk: there browsers start no workers, so an invisible frame stands in for one.
"use strict";
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.onload = () => {
        const inner = this.frame.contentWindow;
        if (this.waiting === null || !inner.document.querySelector("script")) return;
        for (const data of this.waiting) this.send(data);
        this.waiting = null;
      };
      window.addEventListener("message", (event) => {
        if (event.source === this.frame.contentWindow && event.data?.fromWorker)
          this.dispatchEvent(new MessageEvent("message", { data: event.data.fromWorker }));
      });
      const start = `const outer = parent; self.postMessage = (data) => outer.postMessage({ fromWorker: data }, "*");`;
      this.frame.srcdoc = `<script>${start}<\/script><script src="${new URL(url, location)}"><\/script>`;
      document.documentElement.append(this.frame);
    }
    send(data) {
      const inner = this.frame.contentWindow;
      inner.dispatchEvent(new inner.MessageEvent("message", { data }));
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.send(data);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
