"use strict";
// The equations of cssoftmax.similarity for one pair, its update weights constant in the backward pass.
// Each loss: factors -> {positive, positiveSlope, negative, negativeSlope}, functions of a cosine.
// margin is that of CS-Softmax and CosFace, for ArcFace in radians; the Circle loss has the relaxation (1 - margin) / 2.

const SIMILARITIES = {
  "CS-Softmax": ({ margin, weightUpdate }) => {
    const r = (1 - margin) / 2;
    const update = (gap) => (weightUpdate === 0 ? 1 : Math.max(gap, 0) ** weightUpdate);
    return {
      positive: (c) => update(1 + r - c) * (c - (1 - r)),
      positiveSlope: (c) => update(1 + r - c),
      negative: (c) => update(c + r) * (c - r),
      negativeSlope: (c) => update(c + r),
    };
  },
  CosFace: ({ margin }) => ({
    positive: (c) => c - margin,
    positiveSlope: () => 1,
    negative: (c) => c,
    negativeSlope: () => 1,
  }),
  ArcFace: ({ margin }) => {
    const [cos, sin] = [Math.cos(margin), Math.sin(margin)];
    const sine = (c) => Math.sqrt(Math.max((1 - c) * (1 + c), 0));
    return {
      positive: (c) => (c > -cos ? c * cos - sine(c) * sin : c - margin * sin),
      positiveSlope: (c) => (c > -cos && sine(c) > 0 ? cos + (c / sine(c)) * sin : c > -cos ? cos : 1),
      negative: (c) => c,
      negativeSlope: () => 1,
    };
  },
  Circle: ({ margin }) => SIMILARITIES["CS-Softmax"]({ margin, weightUpdate: 1 }),
};

// What the loss makes of a sample whose cosine is own to its class, other to one class, and 0 to all the rest.
// ownPull and otherPull are -dL/d(own) and dL/d(other).
function pulls(similarity, { scale, own, other, classes }) {
  const logits = [similarity.positive(own), similarity.negative(other), similarity.negative(0)].map((z) => scale * z);
  const counts = [1, 1, Math.max(classes - 2, 0)];
  const largest = Math.max(...logits.filter((_, index) => counts[index] > 0));
  const weights = logits.map((z, index) => (counts[index] > 0 ? Math.exp(z - largest) : 0));
  const total = weights.reduce((sum, weight, index) => sum + weight * counts[index], 0);
  return {
    probability: weights[0] / total,
    // 1 - probability, without the cancellation
    ownPull: (scale * similarity.positiveSlope(own) * (weights[1] + weights[2] * counts[2])) / total,
    otherPull: (scale * similarity.negativeSlope(other) * weights[1]) / total,
  };
}

// Every loss over a grid of cosines: P and N, and the pulls where one of the two cosines varies and the other is as set.
function curves(settings, grid) {
  return Object.fromEntries(Object.entries(SIMILARITIES).map(([name, build]) => {
    const similarity = build(settings);
    const at = (own, other) => pulls(similarity, { ...settings, own, other });
    return [name, {
      positive: grid.map(similarity.positive), negative: grid.map(similarity.negative),
      ownPull: grid.map((c) => at(c, settings.other).ownPull), otherPull: grid.map((c) => at(settings.own, c).otherPull),
    }];
  }));
}
