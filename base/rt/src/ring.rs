// SPDX-License-Identifier: Apache-2.0
//! A bounded ring between two workers: one writes, one reads, nobody locks, waits or allocates.
//!
//! ```text
//!   push ─▶ slots, not yet seen ─ publish ─▶ slots to read ─▶ pop
//!              one store of the tail for a batch, then the bell of the reader
//! ```
//!
//! Each end keeps what it last saw of the other's index, so that a busy ring moves an index's
//! cache line between the cores once a batch, not once a value.

use crate::Waker;
use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// An index on cache lines of its own: two, because the line's neighbour is fetched with it.
#[derive(Debug)]
#[repr(align(128))]
struct Index(AtomicUsize);

#[derive(Debug)]
struct Shared<T> {
    /// Where the reader goes on. Only it writes this.
    head: Index,
    /// Up to where slots may be read. Only the writer writes this.
    tail: Index,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched by one end at a time: by the writer while it is not between `head` and
// `tail`, by the reader while it is. Each end learns of the other's index with Acquire, what was
// stored with Release after the slot was let go. So values only move between threads.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, index: usize) -> *mut MaybeUninit<T> {
        // Indices only grow; the length is a power of two.
        self.slots[index & (self.slots.len() - 1)].get()
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (head, tail) = (*self.head.0.get_mut(), *self.tail.0.get_mut());
        let mut at = head;
        while at != tail {
            // SAFETY: between head and tail are values that nobody has taken, and both ends are
            // gone.
            unsafe { (*self.slot(at)).assume_init_drop() };
            at = at.wrapping_add(1);
        }
    }
}

/// The end that writes.
#[derive(Debug)]
pub struct RingWriter<T> {
    shared: Arc<Shared<T>>,
    /// Where the next value goes.
    tail: usize,
    published: usize,
    /// Where the reader was when it was last looked at.
    head: usize,
}

/// The end that reads.
#[derive(Debug)]
pub struct RingReader<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// Up to where the writer had published when it was last looked at.
    tail: usize,
}

/// Makes a ring for at least `capacity` values, and at least one.
pub fn ring<T: Send>(capacity: usize) -> (RingWriter<T>, RingReader<T>) {
    let length = capacity.max(1).next_power_of_two();
    let slots = (0..length).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let index = || Index(AtomicUsize::new(0));
    let shared = Arc::new(Shared { head: index(), tail: index(), slots });
    let writer = RingWriter { shared: Arc::clone(&shared), tail: 0, published: 0, head: 0 };
    (writer, RingReader { shared, head: 0, tail: 0 })
}

impl<T: Send> RingWriter<T> {
    /// Puts a value behind the others. The reader sees it after [`RingWriter::publish`].
    ///
    /// # Errors
    /// Gives the value back when the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head) == self.shared.slots.len() && self.room() == 0 {
            return Err(value);
        }
        // SAFETY: there is room, so the reader has let go of this slot, which `room` learned with
        // Acquire; and it does not come here before the tail is past it.
        unsafe { (*self.shared.slot(self.tail)).write(value) };
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// How many values fit. Looks at the reader's index, whose cache line it may have to fetch.
    pub fn room(&mut self) -> usize {
        // Acquire: pairs with the reader's Release, so that it is done with the slots.
        self.head = self.shared.head.0.load(Ordering::Acquire);
        self.shared.slots.len() - self.tail.wrapping_sub(self.head)
    }

    /// Lets the reader see what was pushed. Says whether anything was: then its bell is to be
    /// rung.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        // Release: the values are in their slots for whoever sees this tail.
        self.shared.tail.0.store(self.tail, Ordering::Release);
        self.published = self.tail;
        true
    }

    /// Whether the reader is gone.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }
}

impl<T> Drop for RingWriter<T> {
    fn drop(&mut self) {
        // What was pushed is read or dropped by the reader's side.
        self.shared.tail.0.store(self.tail, Ordering::Release);
    }
}

impl<T: Send> RingReader<T> {
    /// The oldest value that was published.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail {
            // Acquire: pairs with the writer's Release, so that the values are there.
            self.tail = self.shared.tail.0.load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        // SAFETY: the slot is before the tail, so its value was written and published, and it is
        // taken once, because the head moves past it.
        let value = unsafe { (*self.shared.slot(self.head)).assume_init_read() };
        self.head = self.head.wrapping_add(1);
        // Release: the slot was read before the writer may have it again.
        self.shared.head.0.store(self.head, Ordering::Release);
        Some(value)
    }

    /// Whether the writer is gone. What it wrote last can still be there: pop once more.
    pub fn is_abandoned(&self) -> bool {
        let is_abandoned = Arc::strong_count(&self.shared) == 1;
        // Acquire: pairs with the writer's drop, so that its last tail is seen.
        fence(Ordering::Acquire);
        is_abandoned
    }
}

/// Wakes a worker that sleeps, and costs a fence and a load when it does not.
///
/// The worker arms it before its last look at its rings and its sleep; who has published something
/// rings it. Either the worker's look sees what was published, or the ringer sees that it is armed.
#[derive(Clone, Debug)]
pub struct Bell {
    is_armed: Arc<AtomicBool>,
    waker: Waker,
}

impl Bell {
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { is_armed: Arc::new(AtomicBool::new(false)), waker: Waker::new()? })
    }

    /// The worker's: it is about to look once more and then to sleep.
    pub fn arm(&self) {
        self.is_armed.store(true, Ordering::Relaxed);
        // SeqCst: the store is before the look at the rings, for everybody; see `ring`.
        fence(Ordering::SeqCst);
    }

    /// The worker's: it is awake, and looks by itself.
    pub fn disarm(&self) {
        self.is_armed.store(false, Ordering::Relaxed);
    }

    /// Everybody's, after something was published.
    #[inline]
    pub fn ring(&self) {
        // SeqCst: what was published is before this look, for everybody. So of the two, the
        // worker's look at the ring and this one, at least one finds what it looks for.
        fence(Ordering::SeqCst);
        if self.is_armed.load(Ordering::Relaxed) && self.is_armed.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}

/// Belongs into [`crate::Poller::watch`].
impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoll::Epoll;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn values_come_in_order_once_they_are_published_and_a_full_ring_gives_them_back() {
        let (mut writer, mut reader) = ring(4);
        for value in 0..4 {
            writer.push(value).unwrap();
        }
        assert_eq!((writer.push(9), reader.pop()), (Err(9), None));
        assert!(writer.publish() && !writer.publish());
        assert_eq!((reader.pop(), reader.pop()), (Some(0), Some(1)));
        assert_eq!((writer.push(4), writer.push(5), writer.push(6)), (Ok(()), Ok(()), Err(6)));
        assert!(writer.publish());
        let rest: Vec<_> = std::iter::from_fn(|| reader.pop()).collect();
        assert_eq!(rest, [2, 3, 4, 5]);
    }

    #[test]
    fn what_nobody_took_is_dropped_with_the_ring() {
        let value = Arc::new(());
        let (mut writer, mut reader) = ring(8);
        for _ in 0..5 {
            writer.push(Arc::clone(&value)).unwrap();
        }
        writer.publish();
        drop((reader.pop(), reader.pop()));
        writer.push(Arc::clone(&value)).unwrap();
        assert!(!reader.is_abandoned());
        drop(writer);
        assert!(reader.is_abandoned());
        assert_eq!(Arc::strong_count(&value), 5);
        drop(reader);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    /// Two threads, one of which sleeps whenever it finds nothing. A lost wake-up is a timeout.
    #[test]
    fn a_reader_that_sleeps_is_woken_for_everything_that_comes() {
        const VALUES: u64 = 200_000;
        let (mut writer, mut reader) = ring(16);
        let bell = Bell::new().unwrap();
        let rung = bell.clone();
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < VALUES {
                // Uneven batches, with pauses in which the reader falls asleep.
                for _ in 0..1 + next % 7 {
                    next += u64::from(next < VALUES && writer.push(next).is_ok());
                }
                if writer.publish() {
                    rung.ring();
                }
                if next % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let epoll = Epoll::new().unwrap();
        epoll.add(bell.as_fd()).unwrap();
        let (mut expected, mut sleeps) = (0, 0u32);
        while expected < VALUES {
            if let Some(value) = reader.pop() {
                assert_eq!(value, expected);
                expected += 1;
                continue;
            }
            bell.arm();
            if let Some(value) = reader.pop() {
                assert_eq!(value, expected);
                expected += 1;
            } else {
                sleeps += 1;
                let limit = Some(Duration::from_secs(10));
                assert!(epoll.sleep(limit), "nobody woke the reader at {expected}");
            }
            bell.disarm();
        }
        sender.join().unwrap();
        println!("{sleeps} sleeps");
        assert!(sleeps > 0);
    }
}
