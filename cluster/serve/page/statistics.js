// Numbers about numbers.

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function meanDifference(one, other) {
  return one.reduce((sum, value, place) => sum + Math.abs(value - other[place]), 0) / one.length;
}

/** Spearman's correlation, with mean ranks for equal values; null where there is no order to compare. */
export function spearman(one, other) {
  const [a, b] = [ranks(one), ranks(other)];
  const mean = (one.length - 1) / 2;
  let [both, first, second] = [0, 0, 0];
  a.forEach((rank, place) => {
    both += (rank - mean) * (b[place] - mean);
    first += (rank - mean) ** 2;
    second += (b[place] - mean) ** 2;
  });
  return first * second === 0 ? null : both / Math.sqrt(first * second);
}

function ranks(values) {
  const order = [...values.keys()].sort((a, b) => values[a] - values[b]);
  const found = new Float64Array(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start;
    while (end < order.length && values[order[end]] === values[order[start]]) end += 1;
    for (let place = start; place < end; place += 1) found[order[place]] = (start + end - 1) / 2;
    start = end;
  }
  return found;
}
