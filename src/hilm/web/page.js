// Tells the value under the pointer, or under the cell that arrow keys chose, of a Hilbert picture.
(() => {
  const grids = new Map()
  const load = source => {
    if (!grids.has(source)) grids.set(source, fetch(source).then(answer => answer.ok ? answer.arrayBuffer() : null).then(bytes => {
      if (!bytes) return null
      const cells = bytes.byteLength / 8
      return {side: Math.sqrt(cells), values: new Float32Array(bytes, 0, cells), elements: new Int32Array(bytes, 4 * cells)}
    }))
    return grids.get(source)
  }
  const place = (element, shape) => {
    const index = []
    for (const size of [...shape].reverse()) { index.unshift(element % size); element = Math.floor(element / size) }
    return index.join(", ")
  }
  const tell = async (picture, x, y) => {
    const grid = await load(picture.dataset.values), out = document.querySelector(".hilm .reading")
    if (!grid || !out) return
    const clamp = part => Math.min(grid.side - 1, Math.max(0, Math.floor(part * grid.side)))
    const cell = clamp(y) * grid.side + clamp(x), element = grid.elements[cell]
    const shape = picture.dataset.shape.split(",").filter(Boolean).map(Number)
    out.textContent = element < 0 ? "no value here" : `[${place(element, shape)}] = ${grid.values[cell].toPrecision(6)}`
    return grid.side
  }
  document.addEventListener("pointermove", event => {
    if (!event.target.matches?.("img[data-values]")) return
    const box = event.target.getBoundingClientRect()
    tell(event.target, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height)
  })
  document.addEventListener("keydown", async event => {
    const picture = event.target, step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key]
    if (!step || !picture.matches?.("img[data-values]")) return
    event.preventDefault()
    const side = (await load(picture.dataset.values))?.side ?? 1
    const [x, y] = (picture.dataset.cell ?? `${side / 2},${side / 2}`).split(",").map(Number)
    const next = [x + step[0], y + step[1]].map(part => Math.min(side - 1, Math.max(0, part)))
    picture.dataset.cell = next.join(",")
    tell(picture, (next[0] + .5) / side, (next[1] + .5) / side)
  })
})()
