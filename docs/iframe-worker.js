// Search in pages that are opened as files. Browsers start no worker there, so the worker's script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = `<script src="${script}"></script>`
      this.ready = new Promise(resolve => this.frame.addEventListener("load", resolve)).then(() => {
        this.frame.contentWindow.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      })
      document.body.appendChild(this.frame)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
