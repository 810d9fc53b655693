;; The product of rows with a matrix in float32, in 128-bit lanes.
;; tests/ui/test_live.py assembles this file and compares it with kernel.js.
(module
  (import "live" "memory" (memory 0))

  ;; out[r, j] = sum over k of x[r, k] * w[j, k]: x (rows, depth), w (width, depth), out (rows, width).
  ;; x, w and out are addresses in bytes; depth is a multiple of 4.
  (func (export "product")
    (param $x i32) (param $w i32) (param $out i32) (param $rows i32) (param $depth i32) (param $width i32)
    (local $bytes i32) (local $j i32) (local $r i32) (local $k i32) (local $to i32) (local $line i32)
    (local $a i32) (local $b i32) (local $p i32) (local $q i32) (local $s i32) (local $t i32)
    (local $u v128) (local $v v128) (local $m v128)
    (local $a0 v128) (local $a1 v128) (local $a2 v128) (local $a3 v128)
    (local $b0 v128) (local $b1 v128) (local $b2 v128) (local $b3 v128)
    (local.set $bytes (i32.shl (local.get $depth) (i32.const 2)))   ;; of a row of x or w
    (local.set $line (i32.shl (local.get $width) (i32.const 2)))    ;; of a row of out
    (local.set $p (local.get $w))

    ;; four columns of out at a time
    (block $fours_end (loop $fours
      (br_if $fours_end (i32.gt_u (i32.add (local.get $j) (i32.const 4)) (local.get $width)))
      (local.set $q (i32.add (local.get $p) (local.get $bytes)))
      (local.set $s (i32.add (local.get $q) (local.get $bytes)))
      (local.set $t (i32.add (local.get $s) (local.get $bytes)))
      (local.set $to (i32.add (local.get $out) (i32.shl (local.get $j) (i32.const 2))))
      (local.set $a (local.get $x))
      (local.set $r (i32.const 0))

      ;; two rows of x at a time, so that eight sums share six loads
      (block $pairs_end (loop $pairs
        (br_if $pairs_end (i32.gt_u (i32.add (local.get $r) (i32.const 2)) (local.get $rows)))
        (local.set $b (i32.add (local.get $a) (local.get $bytes)))
        (local.set $a0 (v128.const i32x4 0 0 0 0)) (local.set $a1 (v128.const i32x4 0 0 0 0))
        (local.set $a2 (v128.const i32x4 0 0 0 0)) (local.set $a3 (v128.const i32x4 0 0 0 0))
        (local.set $b0 (v128.const i32x4 0 0 0 0)) (local.set $b1 (v128.const i32x4 0 0 0 0))
        (local.set $b2 (v128.const i32x4 0 0 0 0)) (local.set $b3 (v128.const i32x4 0 0 0 0))
        (local.set $k (i32.const 0))
        (loop $depths
          (local.set $u (v128.load (i32.add (local.get $a) (local.get $k))))
          (local.set $v (v128.load (i32.add (local.get $b) (local.get $k))))
          (local.set $m (v128.load (i32.add (local.get $p) (local.get $k))))
          (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $u) (local.get $m))))
          (local.set $b0 (f32x4.add (local.get $b0) (f32x4.mul (local.get $v) (local.get $m))))
          (local.set $m (v128.load (i32.add (local.get $q) (local.get $k))))
          (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $u) (local.get $m))))
          (local.set $b1 (f32x4.add (local.get $b1) (f32x4.mul (local.get $v) (local.get $m))))
          (local.set $m (v128.load (i32.add (local.get $s) (local.get $k))))
          (local.set $a2 (f32x4.add (local.get $a2) (f32x4.mul (local.get $u) (local.get $m))))
          (local.set $b2 (f32x4.add (local.get $b2) (f32x4.mul (local.get $v) (local.get $m))))
          (local.set $m (v128.load (i32.add (local.get $t) (local.get $k))))
          (local.set $a3 (f32x4.add (local.get $a3) (f32x4.mul (local.get $u) (local.get $m))))
          (local.set $b3 (f32x4.add (local.get $b3) (f32x4.mul (local.get $v) (local.get $m))))
          (local.set $k (i32.add (local.get $k) (i32.const 16)))
          (br_if $depths (i32.lt_u (local.get $k) (local.get $bytes))))
        (call $store (local.get $to)
          (local.get $a0) (local.get $a1) (local.get $a2) (local.get $a3))
        (local.set $to (i32.add (local.get $to) (local.get $line)))
        (call $store (local.get $to)
          (local.get $b0) (local.get $b1) (local.get $b2) (local.get $b3))
        (local.set $to (i32.add (local.get $to) (local.get $line)))
        (local.set $a (i32.add (local.get $b) (local.get $bytes)))
        (local.set $r (i32.add (local.get $r) (i32.const 2)))
        (br $pairs)))

      ;; the last row of an odd number
      (if (i32.lt_u (local.get $r) (local.get $rows)) (then
        (local.set $a0 (v128.const i32x4 0 0 0 0)) (local.set $a1 (v128.const i32x4 0 0 0 0))
        (local.set $a2 (v128.const i32x4 0 0 0 0)) (local.set $a3 (v128.const i32x4 0 0 0 0))
        (local.set $k (i32.const 0))
        (loop $depths
          (local.set $u (v128.load (i32.add (local.get $a) (local.get $k))))
          (local.set $a0 (f32x4.add (local.get $a0)
            (f32x4.mul (local.get $u) (v128.load (i32.add (local.get $p) (local.get $k))))))
          (local.set $a1 (f32x4.add (local.get $a1)
            (f32x4.mul (local.get $u) (v128.load (i32.add (local.get $q) (local.get $k))))))
          (local.set $a2 (f32x4.add (local.get $a2)
            (f32x4.mul (local.get $u) (v128.load (i32.add (local.get $s) (local.get $k))))))
          (local.set $a3 (f32x4.add (local.get $a3)
            (f32x4.mul (local.get $u) (v128.load (i32.add (local.get $t) (local.get $k))))))
          (local.set $k (i32.add (local.get $k) (i32.const 16)))
          (br_if $depths (i32.lt_u (local.get $k) (local.get $bytes))))
        (call $store (local.get $to)
          (local.get $a0) (local.get $a1) (local.get $a2) (local.get $a3))))
      (local.set $p (i32.add (local.get $t) (local.get $bytes)))
      (local.set $j (i32.add (local.get $j) (i32.const 4)))
      (br $fours)))

    ;; up to three columns that are left
    (block $ones_end (loop $ones
      (br_if $ones_end (i32.ge_u (local.get $j) (local.get $width)))
      (local.set $to (i32.add (local.get $out) (i32.shl (local.get $j) (i32.const 2))))
      (local.set $a (local.get $x))
      (local.set $r (i32.const 0))
      (loop $rows_left
        (local.set $a0 (v128.const i32x4 0 0 0 0))
        (local.set $k (i32.const 0))
        (loop $depths
          (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul
            (v128.load (i32.add (local.get $a) (local.get $k)))
            (v128.load (i32.add (local.get $p) (local.get $k))))))
          (local.set $k (i32.add (local.get $k) (i32.const 16)))
          (br_if $depths (i32.lt_u (local.get $k) (local.get $bytes))))
        (f32.store (local.get $to) (f32.add
          (f32.add (f32x4.extract_lane 0 (local.get $a0)) (f32x4.extract_lane 2 (local.get $a0)))
          (f32.add (f32x4.extract_lane 1 (local.get $a0)) (f32x4.extract_lane 3 (local.get $a0)))))
        (local.set $to (i32.add (local.get $to) (local.get $line)))
        (local.set $a (i32.add (local.get $a) (local.get $bytes)))
        (local.set $r (i32.add (local.get $r) (i32.const 1)))
        (br_if $rows_left (i32.lt_u (local.get $r) (local.get $rows))))
      (local.set $p (i32.add (local.get $p) (local.get $bytes)))
      (local.set $j (i32.add (local.get $j) (i32.const 1)))
      (br $ones))))

  ;; Stores the sums of the lanes of four vectors as four neighbouring numbers.
  (func $store (param $to i32) (param $a v128) (param $b v128) (param $c v128) (param $d v128)
    (local $ab v128) (local $cd v128)
    (local.set $ab (f32x4.add
      (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $a) (local.get $b))
      (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $a) (local.get $b))))
    (local.set $cd (f32x4.add
      (i8x16.shuffle 0 1 2 3 4 5 6 7 16 17 18 19 20 21 22 23 (local.get $c) (local.get $d))
      (i8x16.shuffle 8 9 10 11 12 13 14 15 24 25 26 27 28 29 30 31 (local.get $c) (local.get $d))))
    (v128.store (local.get $to) (f32x4.add
      (i8x16.shuffle 0 1 2 3 8 9 10 11 16 17 18 19 24 25 26 27 (local.get $ab) (local.get $cd))
      (i8x16.shuffle 4 5 6 7 12 13 14 15 20 21 22 23 28 29 30 31 (local.get $ab) (local.get $cd))))))
